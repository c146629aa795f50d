"""Writes resnotes/ledger.jsonl, what the ledger says of every claim, from the outputs stored in the chapters.

Run it after a chapter's verdicts have changed, then run the chapter on the ledger, which shows them."""
from pathlib import Path

from resnotes.ledger import ledger_file, ledger_lines

if __name__ == '__main__':
    ledger_file.write_text(ledger_lines(Path(__file__).resolve().parent.parent/'nbs'), encoding='utf-8')
