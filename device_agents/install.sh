#!/usr/bin/env bash
# Installs hfl-mqtt as a service on Raspberry Pi OS, Debian, Ubuntu and JetPack. `install.sh --help` says how.
#
# Every step looks first and changes only what is not as it should be, so a second run changes nothing. Steps set
# `changed` and say what they did; what was right already is counted.
#
# Every Python is started with -I: root imports nothing from the folder where this is started, nor by PYTHONPATH.
set -Eeuo pipefail

readonly UNIT=hfl.service USER_NAME=hfl
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)

usage() {
    cat <<'TEXT'
Usage: install.sh [--bundle TAR] [--source DIR | --wheel FILE] [OPTION]...
       install.sh --uninstall | --purge

Installs a client, an edge or a cloud of hfl-mqtt as the service `hfl`: a user of its own, a Python environment under
/opt/hfl-mqtt, its papers under /etc/hfl-mqtt, its state under /var/lib/hfl-mqtt. Run it again for another version or
other papers: it changes only what differs, and says so.

What to install:
  --bundle TAR       the node's papers, as `hfl fleet render` wrote them: agent.yaml, certificates, key
  --new-fleet        the bundle may be another fleet's than the papers that are there
  --source DIR       the program from a copy of its repository (default: the one this script lies in)
  --wheel FILE       the program from a wheel
  --wheels DIR       packages from this folder alone, without a network: pip download -d DIR
  --constraints FILE the versions of packages (default: constraints.txt beside the source, the wheel or the wheels)
  --role ROLE        client, edge or cloud (default: what agent.yaml says, else client)
  --without-torch    leave torch out: for an edge, or where it comes from elsewhere
  --python PROGRAM   the Python to build upon, 3.10 or newer (default: python3)

How:
  --root DIR         install into the system whose root is DIR, such as a mounted card: no user, no apt, no start
  --venv DIR         take this Python environment, which has hfl-mqtt already, instead of making one
  --no-start         do not start the service now
  --uninstall        remove service and program; papers, state and user stay
  --purge            remove those too
  -h, --help         this text

Exit codes:
  0  done, or nothing to do       3  not allowed: run it as root
  1  a step failed                4  this system cannot run it: too old a Python, 32 bit
  2  wrong usage                  5  the bundle cannot be used
                                  6  packages cannot be installed

Examples:
  sudo ./install.sh --bundle cloud.farm-a.pi-1.tar
  sudo ./install.sh --bundle cloud.farm-a.tar --without-torch
  sudo ./install.sh --wheel hfl_mqtt-0.1.0-py3-none-any.whl --wheels /media/usb/wheels --bundle pi-1.tar
  sudo ./install.sh --root /mnt/card --venv /opt/ready --bundle pi-1.tar
  sudo ./install.sh --uninstall
TEXT
}

# ---------------------------------------------------------------------------------------------------------- words

changed=0 unchanged=0 notes=()
did() { changed=$((changed + 1)); echo "  $*"; }
kept() { unchanged=$((unchanged + 1)); }
note() { notes+=("$*"); }
die() { local code=$1; shift; echo "install.sh: $*" >&2; exit "$code"; }
on_error() { echo "install.sh: line $1 failed; what was done before it stays, run this again when it is mended" >&2; exit 1; }
trap 'on_error $LINENO' ERR

# ---------------------------------------------------------------------------------------------------------- arguments

bundle='' source_dir='' wheel='' wheels='' constraints='' role='' python=python3 root='' given_venv=''
torch=yes start=yes action=install new_fleet=no

need() { if [ $# -lt 2 ] || [ -z "$2" ]; then die 2 "$1 needs a value; see --help"; fi; }
while [ $# -gt 0 ]; do
    case $1 in
        --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}"; continue ;;
        --bundle) need "$@"; bundle=$2; shift ;;
        --source) need "$@"; source_dir=$2; shift ;;
        --wheel) need "$@"; wheel=$2; shift ;;
        --wheels) need "$@"; wheels=$2; shift ;;
        --constraints) need "$@"; constraints=$2; shift ;;
        --role) need "$@"; role=$2; shift ;;
        --python) need "$@"; python=$2; shift ;;
        --root) need "$@"; root=$2; shift ;;
        --venv) need "$@"; given_venv=$2; shift ;;
        --new-fleet) new_fleet=yes ;;
        --without-torch) torch=no ;;
        --no-start) start=no ;;
        --uninstall) action=uninstall ;;
        --purge) action=purge ;;
        -h | --help) usage; exit 0 ;;
        *) die 2 "unknown option $1; see --help" ;;
    esac
    shift
done

case $role in '' | client | edge | cloud) ;; *) die 2 "--role must be client, edge or cloud, got $role" ;; esac
[ -z "$source_dir" ] || [ -z "$wheel" ] || die 2 "--source and --wheel: give one of them"
[ -z "$bundle" ] || [ -f "$bundle" ] || die 2 "no such bundle: $bundle"
[ -z "$wheel" ] || [ -f "$wheel" ] || die 2 "no such wheel: $wheel"
[ -z "$wheels" ] || [ -d "$wheels" ] || die 2 "no such folder of wheels: $wheels"
[ -z "$constraints" ] || [ -f "$constraints" ] || die 2 "no such file of constraints: $constraints"
[ -z "$given_venv" ] || [ -x "$given_venv/bin/python" ] || die 2 "no Python environment: $given_venv"
[ -z "$root" ] || [ -d "$root" ] || die 2 "no such folder: $root"
[ -n "$root" ] || [ "$(id -u)" -eq 0 ] || die 3 "needs root: sudo $0"
[ -z "$root" ] || root=$(cd -- "$root" && pwd)
[ "$root" = / ] && root=''

opt=$root/opt/hfl-mqtt etc=$root/etc/hfl-mqtt state=$root/var/lib/hfl-mqtt
venv=$opt/venv units=$root/etc/systemd/system
# Where no service manager runs (a chroot, an image that is built), the service starts with the next boot.
is_live=no; [ -z "$root" ] && [ -d /run/systemd/system ] && is_live=yes

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# ---------------------------------------------------------------------------------------------------------- tools

# The user's number in the system that is installed into, which need not be the one that runs; empty without a user.
uid_of() { [ ! -f "$root/etc/passwd" ] || awk -F: -v name="$1" '$1 == name { print $3 }' "$root/etc/passwd"; }
gid_of() { [ ! -f "$root/etc/group" ] || awk -F: -v name="$1" '$1 == name { print $3 }' "$root/etc/group"; }
# ids OWNER GROUP: their numbers; nothing where owners cannot be set, as in a plain folder.
ids() {
    local uid gid
    uid=$(uid_of "$1") gid=$(gid_of "$2")
    if [ "$(id -u)" -eq 0 ] && [ -n "$uid" ] && [ -n "$gid" ]; then echo "$uid:$gid"; fi
}
# is_right PATH MODE OWNER GROUP
is_right() {
    local wanted
    wanted=$(ids "$3" "$4")
    [ ! -L "$1" ] && [ "$(stat -c %a "$1")" = "$2" ] && { [ -z "$wanted" ] || [ "$(stat -c %u:%g "$1")" = "$wanted" ]; }
}
set_right() {
    local wanted
    wanted=$(ids "$3" "$4")
    [ -z "$wanted" ] || chown -h "$wanted" "$1"
    chmod "$2" "$1"
}
# put FILE TARGET MODE GROUP: have root's TARGET hold what FILE does, at once or not at all.
put() {
    if [ -f "$2" ] && cmp -s "$1" "$2" && is_right "$2" "$3" root "$4"; then kept; return; fi
    install -m 600 "$1" "$2.new"
    set_right "$2.new" "$3" root "$4"
    mv -fT "$2.new" "$2"
    did "wrote ${2#"$root"}"
    papers_changed=yes
}
# folder PATH MODE OWNER GROUP
folder() {
    if [ -d "$1" ] && is_right "$@"; then kept; return; fi
    mkdir -p "$1"
    set_right "$@"
    did "made ${1#"$root"}"
}
# link TARGET NAME: have NAME lead there, at once.
link() {
    if [ "$(readlink "$2" || true)" = "$1" ]; then kept; return 1; fi
    if [ -d "$2" ] && [ ! -L "$2" ]; then rm -rf "$2"; fi
    # Said here, for where it is asked whether something was linked, the shell goes on after a failure.
    if ! { ln -sfn "$1" "$2.new" && mv -fT "$2.new" "$2"; }; then
        die 6 "cannot make $2 lead to $1: is the disk full or read-only?"
    fi
}
is_jetson() {
    [ -e "$root/etc/nv_tegra_release" ] || grep -qai jetson "$root/proc/device-tree/model" 2>/dev/null
}

# ---------------------------------------------------------------------------------------------------------- remove

remove() {
    local target=$1
    if [ -e "$target" ] || [ -L "$target" ]; then rm -rf -- "$target"; did "removed ${target#"$root"}"; else kept; fi
}
uninstall() {
    if [ $is_live = yes ] && [ -e "$units/$UNIT" ]; then systemctl disable --quiet --now "$UNIT"; fi
    remove "$units/multi-user.target.wants/$UNIT"
    remove "$units/$UNIT"
    remove "$units/$UNIT.d/50-board.conf"
    if [ -d "$units/$UNIT.d" ]; then rmdir --ignore-fail-on-non-empty "$units/$UNIT.d"; fi
    if [ $is_live = yes ]; then systemctl daemon-reload; fi
    local left
    for left in "$opt"/venv "$opt"/env-*; do remove "$left"; done
    if [ -d "$opt" ]; then rmdir --ignore-fail-on-non-empty "$opt"; fi
    if [ $action = purge ]; then
        remove "$etc"
        remove "$state"
        if [ "$(id -u)" -eq 0 ] && [ -n "$(uid_of "$USER_NAME")" ]; then
            userdel ${root:+--root "$root"} "$USER_NAME"
            did "removed the user $USER_NAME"
        fi
    else
        for left in "$etc" "$state"; do
            [ ! -d "$left" ] || note "kept ${left#"$root"}; --purge removes it"
        done
    fi
}

# ---------------------------------------------------------------------------------------------------------- install

check_system() {
    local bits name=unknown
    bits=$(getconf LONG_BIT)
    if [ -z "$root" ] && [ "$bits" != 64 ]; then
        die 4 "a 32-bit system: torch has no packages for it; install the 64-bit system of this board"
    fi
    if [ -r "$root/etc/os-release" ]; then
        # shellcheck disable=SC1091
        name=$(. "$root/etc/os-release"; echo "${ID:-} ${ID_LIKE:-}")
    fi
    case " $name " in
        *" debian "* | *" ubuntu "* | *" raspbian "*) ;;
        *) note "not tried on this system ($name): made for Raspberry Pi OS, Debian, Ubuntu and JetPack" ;;
    esac
}

has_venv() { "$1" -I -c 'import ensurepip, venv' 2>/dev/null; }
check_python() {
    [ -z "$given_venv" ] || return 0
    if [ -z "$root" ] && ! has_venv "$python" && command -v apt-get >/dev/null; then
        local packages=(python3-venv ca-certificates)
        [ "$python" = python3 ] || packages=("$(basename "$python")-venv" ca-certificates)
        export DEBIAN_FRONTEND=noninteractive
        apt-get update -qq >"$work/apt.log" 2>&1 || true # what is known already may do
        apt-get install -y -qq --no-install-recommends "${packages[@]}" >"$work/apt.log" 2>&1 ||
            die 6 "apt-get cannot install ${packages[*]}: $(tail -n 1 "$work/apt.log")"
        did "installed ${packages[*]}"
    fi
    command -v "$python" >/dev/null || die 4 "no $python: install Python 3.10 or newer, or name one by --python"
    "$python" -I -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        die 4 "$("$python" --version) is too old, 3.10 is the oldest that does: install a newer one beside it, name it by --python"
    has_venv "$python" || die 4 "$python cannot make environments: install its venv package"
}

make_user() {
    if [ "$(id -u)" -ne 0 ] || [ ! -f "$root/etc/passwd" ]; then
        note "no user $USER_NAME was made: $root is no whole system, or this is not root"
        return
    fi
    if [ -n "$(uid_of "$USER_NAME")" ]; then kept; return; fi
    useradd ${root:+--root "$root"} --system --user-group --home-dir /var/lib/hfl-mqtt --no-create-home \
        --shell /usr/sbin/nologin "$USER_NAME"
    did "made the user $USER_NAME"
}

# What the environment is made of, in one line: equal lines, equal environments.
recipe() {
    local program
    if [ -n "$wheel" ]; then
        program=$(sha256sum <"$wheel")
    else
        program=$(cd "$source_dir" && find setup.cfg pyproject.toml hfl_mqtt device_agents -type f \
            ! -path '*/__pycache__/*' ! -path '*.egg-info/*' -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum)
    fi
    echo "$("$python" --version) torch=$torch program=${program%% *}" \
        "constraints=$([ -z "$constraints" ] || sha256sum <"$constraints" | cut -c1-64)"
}

make_venv() {
    if [ -n "$given_venv" ]; then
        link "$given_venv" "$venv" || return 0
        did "took the environment $given_venv"
        program_changed=yes
        return
    fi
    if [ -z "$wheel" ] && [ -z "$source_dir" ]; then
        [ -f "$here/../setup.cfg" ] || die 2 "say what to install: --source DIR or --wheel FILE"
        source_dir=$here/..
    fi
    if [ -n "$source_dir" ] && [ ! -f "$source_dir/setup.cfg" ]; then
        die 2 "no source of hfl-mqtt: $source_dir has no setup.cfg"
    fi
    if [ -z "$constraints" ]; then
        for place in "$source_dir" "${wheel:+$(dirname "$wheel")}" "$wheels"; do
            if [ -n "$place" ] && [ -f "$place/constraints.txt" ]; then constraints=$place/constraints.txt; break; fi
        done
    fi
    # A new environment is made beside the one in use, and takes its place when it is whole.
    local wanted name env
    wanted=$(recipe)
    name=env-$(echo "$wanted" | sha256sum | cut -c1-12)
    env=$opt/$name
    if [ -f "$env/recipe" ] && [ "$(readlink "$venv" || true)" = "$name" ]; then kept; return; fi
    local options=(--clear)
    # JetPack's own torch finds the GPU, the one of PyPI does not.
    if is_jetson; then options+=(--system-site-packages); fi
    "$python" -I -m venv "${options[@]}" "$env"
    local pip=("$env/bin/python" -I -m pip --disable-pip-version-check --no-input install --quiet --no-cache-dir)
    if [ -n "$constraints" ]; then pip+=(-c "$constraints"); fi
    if [ -n "$wheels" ]; then pip+=(--no-index --find-links "$wheels"); fi
    if [ $torch = yes ] && ! is_jetson; then install_torch; fi
    local what=$wheel
    if [ -z "$what" ]; then
        # Built outside the source: it may be read-only, and pip leaves its build folder there.
        mkdir "$work/source"
        cp -r "$source_dir"/{setup.cfg,pyproject.toml,hfl_mqtt,device_agents} "$work/source/"
        if [ -f "$source_dir/README.md" ]; then cp "$source_dir"/{README.md,LICENSE} "$work/source/"; fi
        what=$work/source
    fi
    local extras=''
    if [ $torch = yes ] && ! is_jetson; then extras='[train]'; fi
    "${pip[@]}" "$what$extras" 2>"$work/pip.log" ||
        die 6 "pip cannot install hfl-mqtt: $(tail -n 3 "$work/pip.log" | tr '\n' ' ')"
    if is_jetson && [ $torch = yes ] && ! "$env/bin/python" -I -c 'import torch' 2>/dev/null; then
        note "no torch: install NVIDIA's wheel for this JetPack into $python, then start again: systemctl restart hfl"
    fi
    if [ -n "$root" ]; then sed -i "1s|^#!$root/|#!/|" "$env"/bin/hfl; fi
    echo "$wanted" >"$env/recipe"
    link "$name" "$venv" || true
    did "installed hfl-mqtt $("$env/bin/python" -I -c 'import hfl_mqtt; print(hfl_mqtt.__version__)') for $("$python" --version)"
    local old
    for old in "$opt"/env-*; do [ "$old" = "$env" ] || remove "$old"; done
    program_changed=yes
}

install_torch() {
    # PyPI's torch brings gigabytes of CUDA for some machines: without an NVIDIA GPU the CPU's is tried first.
    if [ -z "$wheels" ] && ! command -v nvidia-smi >/dev/null &&
        "${pip[@]}" --index-url https://download.pytorch.org/whl/cpu --retries 0 --timeout 15 torch torchvision 2>/dev/null; then
        return
    fi
    "${pip[@]}" torch torchvision 2>"$work/pip.log" ||
        die 6 "pip cannot install torch: $(tail -n 3 "$work/pip.log" | tr '\n' ' '); or leave it out by --without-torch"
}

# check_papers FOLDER: sets role to what its agent.yaml says; ends this where it cannot be used.
check_papers() {
    local said
    said=$(sed -n "s/^role:[[:space:]]*[\"']\{0,1\}\([a-z]*\).*/\1/p" "$1/agent.yaml" | head -n 1)
    case $said in client | edge | cloud) ;; *) die 5 "agent.yaml is for '$said': a service is a client, an edge or a cloud" ;; esac
    if [ -n "$role" ] && [ "$said" != "$role" ]; then die 5 "agent.yaml is for the role $said, --role says $role"; fi
    role=$said
    "$venv/bin/python" -I -m hfl_mqtt.cli check "$1/agent.yaml" >"$work/check.log" 2>&1 ||
        die 5 "agent.yaml cannot be used: $(sed "s|$1/||g" "$work/check.log" | tail -n 5)"
}

# succeed FOLDER: see that these papers may replace those that are there; keeps of the old ones what must stay.
succeed() {
    local left
    if [ $new_fleet = yes ] && ! cmp -s "$etc/fleet.pub" "$1/fleet.pub"; then
        for left in node.card fleet.pub revoked; do
            if [ -e "$etc/$left" ] && [ ! -e "$1/$left" ]; then remove "$etc/$left"; fi
        done
        return
    fi
    "$venv/bin/python" -I -m device_agents.succession "$etc" "$1" >"$work/succession.log" 2>&1 ||
        die 5 "$(tail -n 1 "$work/succession.log" | sed "s|$1/||g; s|$etc/||g")"
    if [ -s "$work/succession.log" ]; then note "$(cat "$work/succession.log")"; fi
}

install_papers() {
    folder "$etc" 750 root "$USER_NAME"
    folder "$state" 700 "$USER_NAME" "$USER_NAME"
    if [ -n "$bundle" ]; then
        local papers=$work/papers
        mkdir -m 700 "$papers"
        "$venv/bin/python" -I -m hfl_mqtt.fleet.bundle unpack "$bundle" "$papers" >"$work/bundle.log" 2>&1 ||
            die 5 "the bundle cannot be used: $(tail -n 1 "$work/bundle.log")"
        [ -f "$papers/agent.yaml" ] || die 5 "the bundle has no agent.yaml: $bundle"
        # The unit is this program's own: one that came in a tar could run anything as anybody.
        rm -f "$papers/$UNIT"
        # A device that keeps its own key made it here.
        if [ -f "$etc/node.key" ] && [ ! -f "$papers/node.key" ]; then cp "$etc/node.key" "$papers/"; fi
        check_papers "$papers"
        succeed "$papers"
        local file
        for file in "$papers"/*; do put "$file" "$etc/$(basename "$file")" 640 "$USER_NAME"; done
    elif [ -f "$etc/agent.yaml" ]; then
        check_papers "$etc"
    else
        note "no papers yet: /etc/hfl-mqtt/agent.yaml is missing; run this again with --bundle"
    fi
    if [ -f "$etc/node.crt" ] && [ ! -f "$etc/node.key" ]; then
        note "no key yet: make it here by hfl device request --out /etc/hfl-mqtt, and have it signed at home"
    fi
}

install_unit() {
    mkdir -p "$units/multi-user.target.wants"
    "$venv/bin/python" -I -m hfl_mqtt.fleet.unit "${role:-client}" >"$work/$UNIT"
    put "$work/$UNIT" "$units/$UNIT" 644 root
    if is_jetson && [ "${role:-client}" != edge ]; then
        printf '%s\n' '# The GPU is reached through its device files.' '[Service]' 'PrivateDevices=false' \
            'SupplementaryGroups=video render' >"$work/board.conf"
        mkdir -p "$units/$UNIT.d"
        put "$work/board.conf" "$units/$UNIT.d/50-board.conf" 644 root
    fi
    if link "/etc/systemd/system/$UNIT" "$units/multi-user.target.wants/$UNIT"; then
        did "enabled $UNIT"
        papers_changed=yes
    fi
    if [ -z "$root" ] && [ -r /sys/fs/cgroup/cgroup.controllers ] && ! grep -qw memory /sys/fs/cgroup/cgroup.controllers; then
        note "this system does not bound memory; on a Raspberry Pi, add cgroup_enable=memory to /boot/firmware/cmdline.txt"
    fi
}

start_service() {
    [ -f "$etc/agent.yaml" ] || return 0
    if [ $is_live = no ]; then
        note "systemd does not run here: the service starts with the next boot"
        return
    fi
    if [ "$papers_changed$program_changed" != nono ]; then systemctl daemon-reload; fi
    if [ $start = no ]; then return; fi
    if [ "$papers_changed$program_changed" != nono ] || ! systemctl is-active --quiet "$UNIT"; then
        # Not waited for: it is ready when its disk and its training process are.
        systemctl restart --no-block "$UNIT"
        did "started $UNIT; look at it by: systemctl status hfl, journalctl -u hfl"
    else
        kept
    fi
}

papers_changed=no program_changed=no
if [ $action != install ]; then
    uninstall
else
    check_system
    check_python
    make_user
    folder "$opt" 755 root root
    make_venv
    install_papers
    install_unit
    start_service
fi
for line in ${notes[@]+"${notes[@]}"}; do echo "  note: $line"; done
if [ $changed -eq 0 ]; then echo "nothing changed"; else echo "$changed changed, $unchanged as they were"; fi
