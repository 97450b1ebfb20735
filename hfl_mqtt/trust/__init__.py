"""Who said it: Ed25519 keys, the cards that say whose a key is, and the list of those that no longer count."""
