"""A plugin with a hook that does not exist."""

import prunekit as pk


@pk.hookimpl
def prunekit_register_criterions():
    return []
