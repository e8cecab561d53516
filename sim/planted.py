"""Bugs planted for storms to find, beside those of `sim.mutants`: each takes away what only a whole world shows.

No tests are named: that the storms go red is what is to be shown, by `sim hunt`.
"""

from __future__ import annotations

from sim.mutants import Mutant


def _planted(name: str, says: str, file: str, old: str, new: str) -> Mutant:
    return Mutant(name, says, file, old, new, tests=())


PLANTED: tuple[Mutant, ...] = (
    _planted(
        "acknowledged-before-the-commit",
        "A step counts as done though its transaction was never committed.",
        "peer/store/database.py",
        '                self._writer.execute("COMMIT")\n        except BaseException as error:',
        '                self._writer.execute("COMMIT" if self.commits % 7 else "ROLLBACK")\n'
        "        except BaseException as error:",
    ),
    _planted(
        "chunk-not-synced",
        "A chunk file gets its name without its bytes being synced.",
        "peer/store/chunk_files.py",
        "        self._file.sync()\n",
        "",
    ),
    _planted(
        "name-not-synced",
        "A chunk file's name is not made durable before a row names it.",
        "peer/store/chunk_files.py",
        "        self.disk.rename(incoming, path)\n        self.disk.sync_folder(folder)\n",
        "        self.disk.rename(incoming, path)\n",
    ),
    _planted(
        "unverified-from-the-database",
        "A chunk in the database is served without being verified.",
        "peer/store/chunks.py",
        "        if blake3(content).digest() != chunk_hash:\n"
        '            raise ChunkCorrupt(f"chunk {chunk_hash.hex()} in the database no longer gives its hash")\n',
        "",
    ),
    _planted(
        "receipt-of-who-failed",
        "A receipt names targets to which nothing came.",
        "peer/files/delivery.py",
        "Delivery(target, outcomes.get(target, _missed(target)))",
        "Delivery(target, outcomes.get(target) and None)",
    ),
    _planted(
        "delete-forgets-one",
        "A deletion that is heard ends all versions but the last it names.",
        "protocol/catalog.py",
        "        case Delete():\n            _end_puts(store, op.supersedes)\n",
        "        case Delete():\n            _end_puts(store, op.supersedes[:-1] or op.supersedes[1:])\n",
    ),
    _planted(
        "checksum-not-looked-at",
        "Content is taken whatever its checksum says.",
        "peer/files/intake.py",
        "            if actual != expected:\n",
        "            if len(actual) != len(expected):\n",
    ),
    _planted(
        "dead-stays-dead",
        "A peer that was accused once is never taken for alive again.",
        "protocol/member_list.py",
        "        if not 0 < member.incarnation - peer.member.incarnation <= INCARNATION_STEP_MAX:\n",
        "        if peer.accusation or not 0 < member.incarnation - peer.member.incarnation <= INCARNATION_STEP_MAX:\n",
    ),
    _planted(
        "nobody-repairs",
        "No peer fetches what it lacks.",
        "peer/upkeep/repair.py",
        "                due = [put for put in lacking if all_of_it or self._is_due(put.dot)]\n",
        "                due = [put for put in lacking if all_of_it and self._is_due(put.dot)]\n",
    ),
    _planted(
        "unused-files-stay",
        "The files of chunks that are not needed any more are never removed.",
        "peer/store/collector.py",
        "        await self._env.run_blocking(Work.DISK, self._files.remove, paths)\n",
        "        await self._env.run_blocking(Work.DISK, self._files.remove, paths[1:])\n",
    ),
    _planted(
        "bad-chunk-never-condemned",
        "A chunk in the database that turned out bad stays, and its files count as held.",
        "peer/store/holding.py",
        "        if is_good or store.chunk_row(chunk_hash) != row:\n",
        "        if is_good or row.content is not None or store.chunk_row(chunk_hash) != row:\n",
    ),
    _planted(
        "part-begins-too-early",
        "What is read from within a chunk begins a byte before it should.",
        "peer/files/downloads.py",
        "            parts.append(_Part(chunk, begin - start, end - begin))\n",
        "            parts.append(_Part(chunk, max(0, begin - start - 1), end - begin))\n",
    ),
    _planted(
        "shared-content-goes-with-one-file",
        "A chunk goes with the first file that no longer needs it, though others do.",
        "peer/store/catalog.py",
        '                "DELETE FROM chunks WHERE hash = ? AND refs <= 0 RETURNING serial", (chunk_hash,)\n',
        '                "DELETE FROM chunks WHERE hash = ? RETURNING serial", (chunk_hash,)\n',
    ),
)
