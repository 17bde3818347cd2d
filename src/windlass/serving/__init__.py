"""One engine for many requests: paged memory, schedulers, executors.

In the order a request passes them: `request` (what is asked, and the sequence that is scheduled), `kv` (pages, shared
prefixes), `scheduler` (who gets the next step), `executor` (runs it: the real model, or a script), `sampling` (logits
to tokens), `engine` (the loop around them), `async_engine` (the same in a thread of its own, and replicas).
"""
