"""The main job: one real disk carried through every path of the manifests in `page/`.

Owns: what `shorthorn demo` shows, measures and compares. Must never: reach round what a user has:
plain kubectl with the printed kubeconfig, the `shorthorn` command, CSI calls over the socket, and
the files of the pool for measuring. Called by `commands.demo`.
"""
