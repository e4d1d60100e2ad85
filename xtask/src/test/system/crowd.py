"""Plays clients who mean no good, of the kinds in sys.argv, on the server at 10.77.0.2, until its standard input
ends. Runs in a network namespace made for it, for a minute at most."""
import random, resource, select, socket, struct, sys, time

SERVER = ("10.77.0.2", 80)
MANY = 500


def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def packet(source, flags, options=b""):
    """A TCP segment from any port of an address, with any number."""
    source, to = socket.inet_aton(source), socket.inet_aton(SERVER[0])
    port, seq, words = random.randint(32768, 60999), random.getrandbits(32), 5 + len(options) // 4
    tcp = struct.pack("!HHIIBBHHH", port, 80, seq, 0, words << 4, flags, 1000, 0, 0) + options
    tcp = bytearray(tcp)
    tcp[16:18] = struct.pack("!H", checksum(source + to + struct.pack("!HH", 6, len(tcp)) + tcp))
    # Linux fills in the checksum of the header.
    return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0, 64, 6, 0) + source + to + tcp


def anybody():
    return f"198.18.{random.randint(0, 255)}.{random.randint(1, 254)}"


def connecting():
    connection = socket.socket()
    connection.setblocking(False)
    connection.connect_ex(SERVER)
    return connection


class Often:
    """What is sent so many times a second."""
    rate = 200

    def __init__(self):
        self.raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        self.sent, self.start = 0, time.monotonic()

    def act(self):
        due = int((time.monotonic() - self.start) * self.rate)
        # On a machine that has no time for more it is less, not all at once.
        for n in range(max(self.sent, due - self.rate // 4), due):
            self.send(n)
        self.sent = due


class Syns(Often):
    rate = 1000

    def send(self, n):
        options = bytes([2, 4, 5, 180, 4, 2, 1, 3, 3, 7, 1, 1])
        self.raw.sendto(packet(anybody(), 2, options), SERVER)


class Resets(Often):
    """By guess, in the name of others and of who is here; and of connections that have just begun."""

    def __init__(self):
        super().__init__()
        self.begun = []

    def send(self, n):
        self.raw.sendto(packet("10.77.0.1" if n % 2 else anybody(), 4), SERVER)
        self.begun.append(connecting())
        if len(self.begun) > 10:
            connection = self.begun.pop(0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            try:
                connection.send(b"GET /16m.bin HTTP/1.1\r\nHost: x\r\n\r\n")
            except OSError:
                pass
            connection.close()


class Idle:
    """Connections that are begun again when they have ended."""
    first = then = b""
    every, takes = 1, 0

    def __init__(self):
        self.connections, self.next, self.round = {}, 0, 0

    def act(self):
        if time.monotonic() < self.next:
            return
        self.next, self.round = time.monotonic() + 0.25, self.round + 1
        for _ in range(min(100, MANY - len(self.connections))):
            self.connections[connecting()] = False
        for connection, asked in list(self.connections.items()):
            try:
                self.go_on(connection, asked)
            except (BlockingIOError, InterruptedError):
                pass
            except OSError:
                connection.close()
                del self.connections[connection]

    def go_on(self, connection, asked):
        if not asked:
            connection.send(self.first)  # not before there is a connection
            self.connections[connection] = True
        elif self.then and self.round % self.every == 0:
            connection.send(self.then)
        if self.takes and not connection.recv(self.takes):
            raise ConnectionError


class SlowReaders(Idle):
    first, takes = b"GET /16m.bin HTTP/1.1\r\nHost: x\r\n\r\n", 512


class SlowRequests(Idle):
    first, then, every = b"GET /", b"x", 8
    takes = 512


class Bodies(Idle):
    first = b"GET /1k.bin HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n"
    then, every, takes = b"x", 8, 4096


class LastAnswers(Idle):
    """They do not read the answer with which the connection ends."""
    first = b"GET /16m.bin HTTP/1.1\r\nHost: x\r\nRange: bytes=0-15999\r\nConnection: close\r\n\r\n"


most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
kinds = [globals()[name]() for name in sys.argv[1:]]
begin, said = time.monotonic(), False
while time.monotonic() < begin + 60 and not select.select([0], [], [], 0.005)[0]:
    for kind in kinds:
        kind.act()
    if not said and time.monotonic() > begin + 2:
        print("here", flush=True)
        said = True
