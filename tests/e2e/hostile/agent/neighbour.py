"""Another run of the same installation: it listens everywhere it can, holds something worth having, and says whether anybody came."""

import json
import os
import selectors
import socket
import sys

PORT = int(sys.argv[1])
NAME = sys.argv[2]  # of its abstract socket


def main() -> None:
    with open("/tmp/neighbour.txt", "w") as file:
        file.write("the neighbour's")
    watched = selectors.DefaultSelector()
    listeners = [socket.create_server(("::", PORT), family=socket.AF_INET6, dualstack_ipv6=True), socket.socket(socket.AF_UNIX)]
    listeners[1].bind("\0" + NAME)
    listeners[1].listen()
    datagrams = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    datagrams.bind(("::", PORT + 1))
    for each in (*listeners, datagrams):
        watched.register(each, selectors.EVENT_READ)
    print(json.dumps({"neighbour": "ready", "pid": os.getpid()}), flush=True)
    while True:
        for key, _ in watched.select():
            if key.fileobj is datagrams:
                _, peer = datagrams.recvfrom(4096)
            else:
                accepted, peer = key.fileobj.accept()
                accepted.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 22\r\n\r\n{"canary":"neighbour"}')
                accepted.close()
            print(json.dumps({"neighbour": "visited", "by": repr(peer)}), flush=True)


if __name__ == "__main__":
    main()
