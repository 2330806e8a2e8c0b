"""Serves a page to this machine alone, on a free port, until Ctrl-C."""

import os
import socket
import threading
from typing import Any

import gradio as gr
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from mu_sota.model.errors import InputError

HOST = "127.0.0.1"
PORTS_TRIED = 100
PAGES_KEPT = 16
"""So many pages, open or closed, have their last text in memory: those that were used last."""

# A page of the internet can give its own name this machine's address; a browser would then let it read our page.
_ONLY_THIS_MACHINE = Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])


def serve_until_ctrl_c(page: gr.Blocks, port: int, open_browser: bool, **look: Any) -> None:
    """Serve a page at this machine's own address.

    Args:
        port: 0 for any free one; if it is taken, the next free one is used.
        look: for `launch`, such as a theme.

    Raises:
        InputError: no port is free.
    """
    for name in ("NO_PROXY", "no_proxy"):  # Gradio asks its own server whether it is up; that is not for a proxy
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), HOST)))
    free = _free_port(port)
    if port not in (0, free):
        print(f"Port {port} is taken, so this is port {free}.")
    try:
        page.launch(
            server_name=HOST,
            server_port=free,
            share=False,
            inbrowser=open_browser,
            prevent_thread_lock=True,
            quiet=True,
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            max_file_size=0,
            state_session_capacity=PAGES_KEPT,  # Gradio's own 10,000 would fill the memory
            app_kwargs={"middleware": [_ONLY_THIS_MACHINE]},
            **look,
        )
        print(f"The playground is at http://{HOST}:{free} and ends with Ctrl-C.", flush=True)
        threading.Event().wait()
    except KeyboardInterrupt:
        pass
    finally:
        page.close(verbose=False)


def _free_port(port: int) -> int:
    for candidate in range(port, port + PORTS_TRIED) if port else [0]:
        with socket.socket() as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                tried.bind((HOST, candidate))
            except (OSError, OverflowError):
                continue
            return int(tried.getsockname()[1])
    raise InputError(
        f"--port is {port}, but it and the {PORTS_TRIED - 1} after it are taken; give another, or 0 for any"
    )
