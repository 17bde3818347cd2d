"""The HTTP server: an OpenAI-compatible API, search and answers over one folder.

Rooms, in the order a request passes them: `server` (sockets and life cycle), `connections`, `gate` (who may come in),
`sign_in` and `keys`, `limits`, `openai_api` with `openai_schema`, `search_api`, `services` (the pipeline behind
them), `generation` (one model, a bounded queue), `event_stream`, `replies`, `content_policy`, `metrics`.
"""
