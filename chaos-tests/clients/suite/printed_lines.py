"""What `dev` prints is pasted into a shell as it is, and does what the README says."""

import pathlib
import signal
import subprocess
import tempfile
import threading

START_S = 180

AFTER = """
test "$(aws s3 cp s3://first/README.md -)" = "$(cat README.md)"
python - "$(aws s3 presign s3://first/README.md --expires-in 600)" <<'EOF'
import ssl, sys, os, urllib.request
trust = ssl.create_default_context(cafile=os.environ.get("AWS_CA_BUNDLE"))
assert urllib.request.urlopen(sys.argv[1], context=trust).read() == open("README.md", "rb").read()
EOF
python - <<'EOF'
import boto3, ssl, os, urllib.request
trust = ssl.create_default_context(cafile=os.environ.get("AWS_CA_BUNDLE"))
s3 = boto3.client("s3")
url = s3.generate_presigned_url("put_object", Params={"Bucket": "first", "Key": "put"})
urllib.request.urlopen(urllib.request.Request(url, data=b"presigned", method="PUT"), context=trust)
assert s3.get_object(Bucket="first", Key="put")["Body"].read() == b"presigned"
EOF
"""


def run(binary, tls):
    with tempfile.TemporaryDirectory(prefix="holdfast-printed-") as scratch:
        scratch = pathlib.Path(scratch)
        (scratch / "README.md").write_text("read me\n")
        command = [binary, "dev", "--port", "0", "--data-dir", str(scratch / "data")] + (["--tls"] if tls else [])
        dev = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=scratch)
        watch = threading.Timer(START_S, dev.kill)
        watch.start()
        try:
            printed = []
            for line in dev.stdout:
                printed.append(line.strip())
                if "Ctrl-C" in line:
                    break
            lines = printed[printed.index("Paste:") + 1 :]
            pasted = [line for line in lines if line.startswith(("export ", "aws "))]
            assert len(pasted) == 3, printed
            shell = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", "\n".join(pasted) + AFTER],
                cwd=scratch, capture_output=True, text=True, timeout=300, check=False,
            )
            assert shell.returncode == 0, shell.stdout + shell.stderr
            assert "README.md" in shell.stdout, shell.stdout
        finally:
            watch.cancel()
            dev.send_signal(signal.SIGTERM)
            try:
                dev.wait(60)
            except subprocess.TimeoutExpired:
                dev.kill()
                dev.wait()
