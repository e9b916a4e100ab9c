"""Nothing that this project runs looks up or connects to anything but what it was asked for."""

from tests.preprocess.test_telemetry import SWITCHES
from tests.support.machine import in_namespaces

SCRIPT = """
import ipaddress, os, socket, subprocess, sys, threading, time
from pathlib import Path

release, slide, out = map(Path, sys.argv[1:])
m2ost = Path(sys.executable).with_name("m2ost")
destinations = set()
wire = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.ntohs(3))  # every packet

def watch():
    while packet := wire.recv(64):
        version = packet[0] >> 4
        address = ipaddress.ip_address(packet[16:20] if version == 4 else packet[24:40])
        if not address.is_loopback:
            destinations.add(str(address))

threading.Thread(target=watch, daemon=True).start()
home = {"HOME": str(out), "TMPDIR": str(out)}
kept = (name for name in os.environ if name not in SWITCHES and "proxy" not in name.lower())
environment = {name: os.environ[name] for name in kept}
commands = (
    [m2ost, "export", release.parent / "checkpoint", "--out", out / "release"],
    [m2ost, "predict", slide, "--release", release, "--pitch-um", "200", "--out", out / "result"],
)
running = [
    subprocess.Popen(list(map(str, command)), env=environment | home, stderr=subprocess.PIPE, text=True)
    for command in commands
]
said = [process.communicate()[1][-500:] for process in running]
print([(process.returncode, words) for process, words in zip(running, said) if process.returncode])
print([path.name for path in out.rglob("*") if "icrosoft" in path.name])
try:
    socket.getaddrinfo("example.org", 443)
except OSError:
    pass
until = time.monotonic() + 60
while not destinations and time.monotonic() < until:
    time.sleep(0.1)  # packets come in their order: with this one all before it are seen
print(sorted(destinations))
"""


def test_an_export_a_server_and_its_client_send_no_packet_beyond_this_machine(narrow_release, svs, tmp_path):
    script = f"SWITCHES = {SWITCHES}\n{SCRIPT}"
    statuses, left, destinations = in_namespaces(script, narrow_release, svs, tmp_path, network=True)[-3:]
    assert statuses == "[]", "an export or a prediction failed"
    assert left == "[]", "ONNX Runtime keeps a device id where it reports"
    assert destinations == "['192.0.2.53']", "the one look-up that the test makes itself, and nothing else"
