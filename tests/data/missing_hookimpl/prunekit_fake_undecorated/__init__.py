"""A plugin that forgets the decorator."""


def prunekit_register_criteria():
    return []
