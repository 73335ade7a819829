"""A process that has imported everything, and forks one that asks a server for each line of JSON it is given.

A fresh interpreter needs seconds for its imports; a fork is a real process too, and dies as one. A line with "name",
"cache", "count" and "log" begins one and is answered with its process id; one with "wait" and that id waits for its
end, and is answered with its exit status (-signal if killed).
"""

import json
import os
import signal
import sys
from typing import Any

from amends.lm.chat import ask, open_chat, some_text


def child(job: dict[str, Any]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        chat = open_chat(job["name"], cache=job["cache"], concurrency=3)
        talks = [[{"role": "user", "content": f"Rate sample {i}."}] for i in range(job["count"])]
        replies = ask(chat, talks, some_text, version="1")
        with open(job["log"], "w", encoding="utf-8") as log:
            json.dump(replies.values, log)
    except KeyboardInterrupt:
        os._exit(130)
    os._exit(0)


for line in sys.stdin:
    job = json.loads(line)
    if "wait" in job:
        print(os.waitstatus_to_exitcode(os.waitpid(job["wait"], 0)[1]), flush=True)
        continue
    if (pid := os.fork()) == 0:
        try:
            child(job)
        finally:
            os._exit(1)
    print(pid, flush=True)
