"""`shorthorn image`: its commands put together.

Owns: their names and order. Must never: do anything itself. `cli` mounts `app` as `image`.
"""

from __future__ import annotations

import typer

from shorthorn.commands.image import handles, listing, making, tending, transfers

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Backing images: list, make, send, fetch, verify, delete.\n\n"
    "They are Kubernetes objects, which `kubectl` shows and changes as well; only bytes go another"
    " way, through the web edge. `shorthorn --install-completion` lets the shell complete commands"
    " and names of images.\n\n"
    "Exit codes: 0 done, 1 failed or refused, 2 wrong usage, 130 interrupted.",
)
app.command("ls", epilog=listing.LS_EPILOG)(listing.ls)
app.command("show", epilog=listing.SHOW_EPILOG)(listing.show)
app.command("create", epilog=making.CREATE_EPILOG)(making.create)
app.command("export", epilog=making.EXPORT_EPILOG)(making.export)
app.command("upload", epilog=transfers.UPLOAD_EPILOG)(transfers.upload)
app.command("download", epilog=transfers.DOWNLOAD_EPILOG)(transfers.download)
app.command("verify", epilog=tending.VERIFY_EPILOG)(tending.verify)
app.command("retry", epilog=tending.RETRY_EPILOG)(tending.retry)
app.command("rm", epilog=tending.RM_EPILOG)(tending.rm)
app.command("handle", epilog=handles.EPILOG)(handles.handle)
