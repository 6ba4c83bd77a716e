import pathlib
import signal
import sys
import tempfile
import time
import traceback

from . import boto_checksums, boto_listings, boto_multipart, boto_objects, cli  # noqa: F401, they register checks
from . import printed_lines, sync_under_fire
from .checks import CHECKS
from .zone import Context, Zone


def main(binary, words):
    passed, failed = 0, []
    for zone_name in ("http", "tls"):
        chosen = [(name, run) for name, run in CHECKS if all(word in f"{zone_name} {name}" for word in words)]
        if not chosen:
            continue
        with Zone(binary, zone_name) as zone:
            for name, run in chosen:
                begun = time.monotonic()
                try:
                    run(Context(zone))
                    passed += 1
                    print(f"ok   {zone_name} {name} ({time.monotonic() - begun:.1f} s)", flush=True)
                except Exception:
                    failed.append(f"{zone_name} {name}")
                    print(f"FAIL {zone_name} {name}\n{traceback.format_exc()}", flush=True)
            if failed:
                print(f"--- end of the {zone_name} zone's log\n{zone.log_tail()}")
    for tls in (False, True):
        name = "printed lines" + (" tls" if tls else "")
        if not all(word in name for word in words):
            continue
        try:
            printed_lines.run(binary, tls)
            passed += 1
            print(f"ok   {name}", flush=True)
        except Exception:
            failed.append(name)
            print(f"FAIL {name}\n{traceback.format_exc()}", flush=True)
    for name in failed:
        print(f"failed: {name}")
    print(f"real clients: {passed} passed, {len(failed)} failed")
    return 1 if failed or not passed else 0


# A terminated run still ends its zone.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

binary, *words = sys.argv[1:]
if words[:1] == ["sync-under-fire"]:
    with tempfile.TemporaryDirectory(prefix="holdfast-sync-") as scratch:
        sys.exit(sync_under_fire.run(binary, int((words + ["10000"])[1]), pathlib.Path(scratch)))
sys.exit(main(binary, words))
