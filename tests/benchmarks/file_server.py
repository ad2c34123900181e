"""A real HTTP server for a folder, on this machine alone."""

import contextlib
import http.server
import threading
from functools import partial


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves files; those in `cut` it breaks off half-way, those in `absent` it has not."""

    def __init__(self, *args, cut=(), absent=(), **kwargs):
        self.cut, self.absent = cut, absent
        super().__init__(*args, **kwargs)

    def do_GET(self):
        name = self.path.lstrip("/")
        if name in self.absent:
            self.send_error(404)
        elif name in self.cut:
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            self.wfile.write(b"half of it")
        else:
            super().do_GET()

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def serving(folder, cut=(), absent=()):
    """The address of the folder, ending in a slash, while it is served."""
    handler = partial(Handler, directory=str(folder), cut=cut, absent=absent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()
