"""Child processes end with their parent, however that ends."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from lmscout.children import run_script

linux = pytest.mark.skipif(not Path("/proc").is_dir(), reason="/proc says what is running")


def gone(pid, seconds=10):
    until = time.monotonic() + seconds
    while os.path.exists(f"/proc/{pid}"):
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def test_a_script_runs_without_lmscout(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys; print(__name__, *sys.argv[1:], any('lmscout' in one for one in sys.modules));"
        "sys.exit(3)"
    )
    done = run_script(str(script), ["one", "two"], dict(os.environ))
    assert (done.returncode, done.stdout) == (3, "__main__ one two False\n")


SCRIPT = """
    import os, sys, time

    from lmscout import children

    if sys.argv[1:] == ["watched"]:
        children._killed_by_kernel = lambda: False
    if os.fork() == 0:
        children.end_with_parent(os.getppid())
        print(os.getpid(), flush=True)
        os.close(1)
        time.sleep(60)
    else:
        time.sleep(60)
"""


@linux
@pytest.mark.parametrize("how", ["kernel", "watched"])
def test_a_child_ends_with_its_parent(how):
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), how],
        stdout=subprocess.PIPE,
        text=True,
    )
    child = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    assert gone(child)


LOADING = """
    import os
    from lmscout.children import run_script

    run_script("sleeping.py", [], dict(os.environ))
"""


@linux
def test_a_script_ends_with_who_waits_for_it(tmp_path):
    (tmp_path / "sleeping.py").write_text(
        "import os, time; open('pid.new', 'w').write(str(os.getpid()));"
        "os.rename('pid.new', 'pid'); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(LOADING)], cwd=tmp_path)
    until = time.monotonic() + 30
    while not (tmp_path / "pid").exists():
        assert time.monotonic() < until
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    assert gone(int((tmp_path / "pid").read_text()))
