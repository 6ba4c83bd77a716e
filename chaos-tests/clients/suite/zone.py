"""A zone started by `holdfast dev --json`, and clients of it."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import threading
import uuid

import boto3
import botocore.config

REGION = "us-east-1"
START_S = 180


class Zone:
    """One `holdfast dev`. `name` is `http` or `tls`; use as a context manager, so that no process stays."""

    def __init__(self, binary, name, spawn=False):
        self.name = name
        self.binary = binary
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix=f"holdfast-clients-{name}-"))
        self.data = self.dir / "data"
        self.spawn = spawn

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stop()
        shutil.rmtree(self.dir, ignore_errors=True)

    def start(self):
        command = [self.binary, "dev", "--json", "--port", "0", "--data-dir", str(self.data)]
        command += ["--tls"] if self.name == "tls" else []
        command += ["--spawn"] if self.spawn else []
        log = open(self.dir / "dev.log", "ab")
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, cwd=self.dir, start_new_session=True
        )
        watch = threading.Timer(START_S, self.process.kill)
        watch.start()
        line = self.process.stdout.readline()
        watch.cancel()
        if not line:
            self.stop()
            raise RuntimeError("dev printed no line:\n" + self.log_tail())
        self.ready = json.loads(line)
        self.zone = self.ready["zones"][0]
        self.endpoint = self.zone["s3"]
        self.ca = next((str(path) for path in self.data.glob("ca*.pem")), None) if self.name == "tls" else None

    def stop(self):
        """Ends dev as an operator does; what does not end is killed with all its children."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                pass
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()

    def log_tail(self):
        return (self.dir / "dev.log").read_text(errors="replace")[-4000:]

    def client(self, **config):
        """A boto3 client with the defaults of boto3, but path style: 127.0.0.1 has no subdomains."""
        options = {"s3": {"addressing_style": "path"}, "max_pool_connections": 32, **config}
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id=self.ready["access_key"],
            aws_secret_access_key=self.ready["secret_key"],
            verify=self.ca,
            config=botocore.config.Config(**options),
        )

    def environment(self):
        """What the AWS CLI needs to know."""
        # Version 1 of the CLI still presigns with signature version 2 unless told otherwise.
        config = self.dir / "aws-config"
        config.write_text("[default]\ns3 =\n  signature_version = s3v4\n  addressing_style = path\n")
        env = {
            **os.environ,
            "AWS_CONFIG_FILE": str(config),
            "AWS_ACCESS_KEY_ID": self.ready["access_key"],
            "AWS_SECRET_ACCESS_KEY": self.ready["secret_key"],
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ENDPOINT_URL": self.endpoint,
        }
        if self.ca:
            env["AWS_CA_BUNDLE"] = self.ca
        return env


class Context:
    """What a check gets: a zone, a boto3 client, a bucket of its own and a directory of its own."""

    def __init__(self, zone):
        self.zone = zone
        self.s3 = zone.client()
        self.bucket = "check-" + uuid.uuid4().hex[:12]
        self.s3.create_bucket(Bucket=self.bucket)
        self.dir = pathlib.Path(tempfile.mkdtemp(dir=zone.dir))

    def put(self, key, body=b"x", **more):
        return self.s3.put_object(Bucket=self.bucket, Key=key, Body=body, **more)

    def get(self, key, **more):
        return self.s3.get_object(Bucket=self.bucket, Key=key, **more)

    def read(self, key, **more):
        return self.get(key, **more)["Body"].read()

    def head(self, key, **more):
        return self.s3.head_object(Bucket=self.bucket, Key=key, **more)

    def keys(self, **more):
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, **more)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]

    def aws(self, *args, status=0, stdin=None):
        """Runs the AWS CLI; its standard output, or with another `status` its standard error."""
        done = subprocess.run(
            ["aws", *map(str, args)],
            env=self.zone.environment(),
            input=stdin,
            capture_output=True,
            timeout=300,
            cwd=self.dir,
        )
        if done.returncode != status:
            raise AssertionError(f"aws {args} exited with {done.returncode}: {done.stderr.decode()}")
        return (done.stdout if status == 0 else done.stderr).decode()

    def api(self, *args, **options):
        """`aws s3api`, its JSON."""
        out = self.aws("s3api", *args, "--output", "json", **options)
        return json.loads(out) if out.strip() else {}
