"""The memory of one model under editing: session, ledger, previous keys, what is attached, undo."""
