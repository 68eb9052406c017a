"""Several machines on this one: network namespaces, each with a name, an address and a link.

Needs the right to make user namespaces, and `ip`.
"""

import os
import subprocess

_SETUP = """
set -e
mount -t tmpfs none /run
ip link add bridge type bridge
ip link set bridge up
printf '127.0.0.1 localhost\\n' > /run/hosts
for number in $(seq "$1"); do
  ip netns add "vm-$number"
  ip link add "link-$number" type veth peer name eth netns "vm-$number"
  ip link set "link-$number" master bridge up
  ip -n "vm-$number" address add "10.99.0.$number/24" dev eth
  ip -n "vm-$number" link set eth up
  ip -n "vm-$number" link set lo up
  printf '10.99.0.%s vm-%s\\n' "$number" "$number" >> /run/hosts
done
mount --bind /run/hosts /etc/hosts
echo ready
exec cat
"""
_AS = 'hostname "$1"; cd "$2"; shift 2; exec "$@"'  # entering the namespaces led to /


class Machines:
    """Machines vm-1, vm-2 and so on, which share all files; a context manager.

    Attributes:
      prefixes: what runs a command on each of them.
    """

    def __init__(self, count: int):
        self._keeper = subprocess.Popen(
            [
                "unshare",
                "--map-root-user",
                "--mount",
                "--net",
                "sh",
                "-c",
                _SETUP,
                "sh",
                str(count),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._keeper.stdout.readline() == "ready\n", "no network namespaces here"
        inside = ["nsenter", f"--target={self._keeper.pid}", "--user", "--preserve-credentials",
                  "--mount", "--net"]  # fmt: skip
        self._inside = inside
        self.prefixes = [
            [*inside, "nsenter", f"--net=/run/netns/vm-{number}", "unshare", "--uts",
             "sh", "-c", _AS, "sh", f"vm-{number}", os.getcwd()]
            for number in range(1, count + 1)
        ]  # fmt: skip

    def cut(self, number: int) -> None:
        """Takes the link of a machine, counted from 0, away."""
        subprocess.run(
            [*self._inside, "ip", "link", "set", f"link-{number + 1}", "down"], check=True
        )

    def __enter__(self) -> "Machines":
        return self

    def __exit__(self, *error: object) -> None:
        self._keeper.stdin.close()
        self._keeper.stdout.close()
        self._keeper.wait(10)
