"""An HTTP server that speaks OpenAI's protocol. Its modules need the extra `serve`; `rwkv-engine serve` starts it."""
