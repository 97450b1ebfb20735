"""What all tests share: generated cases are drawn from the tests themselves, not anew in every run.

Hypothesis also takes constants from whatever modules of ours are loaded, so that other cases may come where other tests
run beside: a case that has once failed is written down as an example. `--hypothesis-profile=search` looks for new ones.
"""

from hypothesis import settings

settings.register_profile("same", derandomize=True)
settings.register_profile("search", settings.get_profile("default"))
settings.load_profile("same")
