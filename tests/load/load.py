#!/usr/bin/env python3
"""Many clients at once against `cachalot serve`: what it takes, and that nobody starves or hangs.

    load.py [--server-binary PATH] [--model DIR] [--clients 64] [--seconds 60]
    load.py --throughput            tokens per second with 1, 2, 4 and 8 clients
    load.py --throughput --model DIR --expert-cache 2.3G --tokens 8 --rounds 2     with experts from the disk

Starts a server on a free port of this machine and stops it at the end. A third of the clients hang up in the middle, some
read slowly, some send 100 MB. Prints one JSON object; exit code 1 if a request hung, an answer was wrong, or memory grew
without bound. Standard library only.
"""

import argparse
import http.client
import json
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
QUESTIONS = ["What is the capital of Japan?", "What is the opposite of hot?", "Tell me a story about Mia.", "Who are you?"]
FILLER = "Anna went to the garden with Ben. It was a quiet day at the river. "


class Server:
    def __init__(self, binary, model, *more):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [binary, "serve", "--port", str(self.port), "--keep", "0", *more]
        self.log = tempfile.TemporaryFile()
        self.process = subprocess.Popen(command + (["--model", model] if model else []), stderr=self.log, stdout=self.log)
        for _ in range(600):
            try:
                if self.get("/health")[0] == 200:
                    break
            except OSError:
                time.sleep(0.1)
        self.model = json.loads(self.get("/v1/models")[1])["data"][0]["id"]

    def connect(self, timeout=300):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def get(self, path):
        connection = self.connect(10)
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()

    def resident(self):
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) * 1024

    def ask(self, **fields):
        body = dict(model=self.model, stream=True, thinking={"type": "disabled"}, **fields)
        connection = self.connect()
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        return connection, connection.getresponse()

    def stop(self):
        self.process.terminate()
        return self.process.wait(60)


def pieces(response):
    for line in response:
        if line.startswith(b"data: ") and line.strip() != b"data: [DONE]":
            yield json.loads(line[6:])


def client(server, number, end, out):
    r = random.Random(number)
    while time.time() < end:
        kind = ("leaves", "slow", "big")[number % 3] if r.random() < 0.5 else "reads"
        begin = time.time()
        try:
            if kind == "big":
                status = big(server)
                out.append((kind, "refused" if status == 413 else f"status {status}", time.time() - begin, 0))
                continue
            text = FILLER * r.choice([0, 0, 2, 20, 100]) + r.choice(QUESTIONS)
            connection, response = server.ask(messages=[dict(role="user", content=text)], max_tokens=r.choice([8, 40, 120]), temperature=0)
            if response.status != 200:
                out.append((kind, f"status {response.status}", time.time() - begin, 0))
                connection.close()
                time.sleep(0.2)
                continue
            first, tokens, finish = None, 0, None
            for piece in pieces(response):
                first = first or time.time() - begin
                tokens += 1
                finish = piece["choices"][0]["finish_reason"] if piece.get("choices") else finish
                if kind == "leaves" and tokens == 4:
                    break
                if kind == "slow":
                    time.sleep(0.05)
            # Hanging up is closing the connection in the middle.
            connection.sock and connection.sock.close()
            connection.close()
            ended = kind if kind == "leaves" else finish or "cut"
            out.append((kind, ended, time.time() - begin, first or 0))
        except (OSError, http.client.HTTPException) as error:
            out.append((kind, type(error).__name__, time.time() - begin, 0))


def big(server):
    """Sends 100 MB; the server may stop reading them whenever it likes."""
    connection = server.connect(60)
    connection.putrequest("POST", "/v1/chat/completions")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(100 << 20))
    connection.endheaders()
    try:
        for _ in range(100):
            connection.send(b" " * (1 << 20))
    except OSError:
        pass
    try:
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 413  # it closed the connection while the body was still coming
    finally:
        connection.close()


def load(a):
    server = Server(a.server_binary, a.model, *(["--expert-cache", a.expert_cache] if a.expert_cache else []))
    before, out, most = server.resident(), [], 0
    end = time.time() + a.seconds
    threads = [threading.Thread(target=client, args=(server, n, end, out), daemon=True) for n in range(a.clients)]
    [t.start() for t in threads]
    while any(t.is_alive() for t in threads) and time.time() < end + 240:
        most = max(most, server.resident())
        time.sleep(0.25)
    hung = sum(t.is_alive() for t in threads)
    status = json.loads(server.get("/status")[1])
    code = server.stop()
    firsts = sorted(first for *_, first in out if first)
    longest = max((seconds for _, _, seconds, _ in out), default=0)
    report = dict(
        clients=a.clients, seconds=a.seconds, requests=len(out), hung=hung,
        ends={f"{kind}: {end}": n for (kind, end), n in sorted(Counter((k, e) for k, e, *_ in out).items())},
        first_piece_seconds=dict(median=round(firsts[len(firsts) // 2], 2), p95=round(firsts[len(firsts) * 95 // 100], 2), most=round(firsts[-1], 2)) if firsts else None,
        longest_seconds=round(longest, 1), resident_mb=dict(before=before >> 20, most=most >> 20),
        generated_tokens=status["generated_tokens"], cancelled=status["cancelled"], failed=status["failed"], exit_code=code,
    )
    print(json.dumps(report, indent=1))
    bad = hung or code or status["failed"] or most > before + (2 << 30)
    return 1 if bad or any(e.startswith("status 5") for _, e, *_ in out) else 0


def throughput(a):
    server, rates = Server(a.server_binary, a.model, *(["--expert-cache", a.expert_cache] if a.expert_cache else [])), {}
    for clients in (1, 2, 4, 8):
        counts = []

        def answer(n):
            text = f"Tell me a story about {['Mia', 'Tom', 'Anna', 'Ben', 'Leo', 'Iris', 'Paul', 'Rosa'][n]}."
            _, response = server.ask(messages=[dict(role="user", content=text)], max_tokens=a.tokens, temperature=1, seed=n)
            counts.append(list(pieces(response))[-1]["usage"]["completion_tokens"])

        begin = time.time()
        for _ in range(a.rounds):
            threads = [threading.Thread(target=answer, args=(n,)) for n in range(clients)]
            [t.start() for t in threads]
            [t.join() for t in threads]
        rates[clients] = round(sum(counts) / (time.time() - begin), 1)
    server.stop()
    print(json.dumps(dict(tokens_per_second=rates, gain={n: round(rates[n] / rates[1], 2) for n in rates})))
    return 0


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--server-binary", default=str(ROOT / "target/release/cachalot"))
    p.add_argument("--model")
    p.add_argument("--expert-cache", help="most memory for experts, so that the others come from the disk")
    p.add_argument("--clients", type=int, default=64)
    p.add_argument("--seconds", type=float, default=60)
    p.add_argument("--throughput", action="store_true")
    p.add_argument("--tokens", type=int, default=60)
    p.add_argument("--rounds", type=int, default=5)
    a = p.parse_args()
    sys.exit((throughput if a.throughput else load)(a))


if __name__ == "__main__":
    main()
