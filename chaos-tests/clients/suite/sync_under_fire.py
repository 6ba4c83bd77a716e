"""`aws s3 sync` of 10,000+ files while nodes die: the long form of chaos-tests/tests/node_death.rs, with the real client.

    chaos-tests/clients/run sync-under-fire [files]

For each fault a fresh zone with one process per node: sync up, kill -9 in the middle of it, sync again what the kill of
everything cut off, sync down, diff.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import time

from .zone import Zone

SIZES = [(0, 0, 3), (1, 2048, 27), (2049, 32 << 10, 55), (32 << 10, 512 << 10, 12), (1 << 20, 9 << 20, 3)]


def make_tree(root, files, seed):
    chance = random.Random(seed)
    bounds, weights = [size[:2] for size in SIZES], [size[2] for size in SIZES]
    for number in range(files):
        low, high = chance.choices(bounds, weights)[0]
        path = root / f"d{chance.randrange(60):02}" / f"e{number % 9}" / f"file {number}.rs"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(chance.randbytes(chance.randint(low, high)))


def status(zone):
    for node in zone.zone["nodes"]:
        if "meta" in node["roles"] and alive(node["pid"]):
            done = subprocess.run(
                [zone.binary, "status", "--json", "--endpoint", node["addr"]], capture_output=True, check=False
            )
            if done.returncode == 0:
                return json.loads(done.stdout)
    raise RuntimeError("no meta node answers")


def alive(pid):
    try:
        os.kill(pid, 0)
        return True
    except ProcessLookupError:
        return False


def leader(zone):
    leaders = [group["leader"] for group in status(zone)["groups"]]
    most = max(set(leaders), key=leaders.count)
    return next(node for node in zone.zone["nodes"] if node["id"] == most)


def data_node(zone):
    return next(node for node in zone.zone["nodes"] if "data" in node["roles"])


def stored(zone, bucket):
    pages = zone.client().get_paginator("list_objects_v2").paginate(Bucket=bucket)
    return sum(page["KeyCount"] for page in pages)


def sync(zone, *args, check=True):
    done = subprocess.run(
        ["aws", "s3", "sync", *map(str, args), "--quiet"], env=zone.environment(), capture_output=True, check=False
    )
    if check and done.returncode != 0:
        raise RuntimeError(f"sync {args}: {done.stderr.decode()[-2000:]}")
    return done.returncode


def under_fire(binary, name, choose, files, tree):
    begun = time.monotonic()
    with Zone(binary, "http", spawn=True) as zone:
        zone.client().create_bucket(Bucket="tree")
        load = subprocess.Popen(
            ["aws", "s3", "sync", str(tree), "s3://tree", "--quiet"], env=zone.environment(), stderr=subprocess.PIPE
        )
        while stored(zone, "tree") < files // 3 and load.poll() is None:
            time.sleep(0.5)
        if load.poll() is not None:
            raise RuntimeError(f"{name}: the sync was over before the kill; use more files")
        if choose is None:
            os.killpg(zone.process.pid, signal.SIGKILL)
            zone.process.wait()
            load.kill()
            load.wait()
            zone.start()
            sync(zone, tree, "s3://tree")
        else:
            victim = choose(zone)
            os.kill(victim["pid"], signal.SIGKILL)
            stderr = load.communicate()[1].decode()
            if load.returncode != 0:
                raise RuntimeError(f"{name}: the sync failed: {stderr[-2000:]}")
        count = stored(zone, "tree")
        if count != files:
            raise RuntimeError(f"{name}: {count} of {files} keys are listed")
        back = zone.dir / "back"
        sync(zone, "s3://tree", back)
        subprocess.run(["diff", "-r", tree, back], check=True)
        shutil.rmtree(back)
    print(f"ok   {name}: {files} files came back ({time.monotonic() - begun:.0f} s)", flush=True)


def run(binary, files, scratch):
    tree = scratch / "tree"
    make_tree(tree, files, seed=files)
    faults = [("a data node dies", data_node), ("the leader dies", leader), ("every process dies", None)]
    failed = 0
    for name, choose in faults:
        try:
            under_fire(binary, name, choose, files, tree)
        except Exception as error:
            failed += 1
            print(f"FAIL {name}: {error}", flush=True)
    print(f"sync under fire: {len(faults) - failed} passed, {failed} failed")
    return 1 if failed else 0
