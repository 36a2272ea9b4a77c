"""`serve --page`: the page and its MCP endpoint beside the API, one model and one process for both."""

from __future__ import annotations

import os

from fastapi import FastAPI

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # no telemetry; read when gradio is imported

import gradio as gr

from server.auth import Keys
from server.settings import Settings
from space.page import build_page, look
from space.shelf import Shelf
from speech_xl.model import SpeechModel

PATH = "/page"


def add_page(app: FastAPI, model: SpeechModel, settings: Settings, shelf: Shelf) -> FastAPI:
    """The application with the page at PATH; its visitors keep memories on `shelf`, which the API does not reach.

    Where there are keys, one of them is the password, whatever the name.

    Gradio's endpoint for agents cannot log in, so there they have the API's own alone.
    """
    keys = Keys(settings.keys)
    page = build_page(model, settings.hours, shelf=shelf).queue(default_concurrency_limit=4, max_size=64)
    # Gradio refuses paths that nobody uploaded to a page that has been launched, and takes any of this machine's before.
    page.has_launched = True
    return gr.mount_gradio_app(
        app,
        page,
        path=PATH,
        auth=(lambda name, password: keys.owner(password) is not None) if settings.keys else None,
        max_file_size=settings.upload_bytes,
        show_error=False,  # what is meant for a visitor is shown all the same
        mcp_server=not settings.keys,
        **look(),
    )
