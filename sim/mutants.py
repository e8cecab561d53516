"""Bugs we plant to see whether the tests find them: each takes away one rule the replicas live by.

A mutant that no longer applies is an error and not a pass, so whoever rewrites the code it changes rewrites it too.
"""

from __future__ import annotations

from dataclasses import dataclass

HISTORIES = "tests/protocol/test_convergence.py::test_peers_converge_after_any_history"
TOLD = "tests/protocol/test_convergence.py::test_it_holds_that"
ROT = (
    "tests/protocol/test_convergence.py::test_rows_that_rot_away_on_one_peer_come_back_and_nothing_is_removed_for_them"
)
DAMAGED_ROWS = (
    "tests/protocol/test_convergence.py"
    "::test_a_peer_whose_rows_are_damaged_takes_over_another_ones_state_and_keeps_what_its_log_has_beyond"
)
REPLICA = "tests/protocol/test_replica.py"
FORKS = "tests/protocol/test_forks.py"
PEER_FORKS = "tests/peer/gossip/test_forks.py"
CODEC = "tests/protocol/test_codec.py"
STORE = "tests/protocol/test_store_contract.py"

HOLDING = "tests/peer/store/test_holding.py"
REGISTERING = "tests/peer/files/test_registering.py"
TAIL = "tests/peer/store/test_tail.py"
CHUNKS = "tests/peer/store/test_chunks.py"
SPACE = "tests/peer/store/test_space.py"
DATABASE = "tests/peer/store/test_database.py"
ENV = "tests/peer/world/test_env.py"
CALLERS = "tests/peer/http/test_callers.py"
MIN_COPIES = "tests/peer/files/test_min_copies.py"
SERVER = "tests/peer/world/test_server.py"
CLIENT = "tests/peer/gossip/test_client.py"
TASKS = "tests/peer/test_tasks.py"
UNFORESEEN = "tests/peer/gossip/test_unforeseen.py"
HOSTILE = "tests/peer/gossip/test_hostile_members.py"
EXCHANGE = "tests/peer/gossip/test_exchange.py"
CATCHING_UP = "tests/peer/gossip/test_catching_up.py"
PLACEMENT = "tests/peer/gossip/test_placement.py"
DEFICITS = "tests/peer/upkeep/test_deficits.py"
VERIFICATION = "tests/peer/upkeep/test_verification.py"
MEMBERSHIP = "tests/protocol/test_membership.py"
WORKER = "tests/peer/test_worker.py"
JOINING = "tests/peer/gossip/test_joining.py"
COMPLAINTS = "tests/peer/test_complaints.py"
REMOTE = "tests/peer/cli/test_remote.py"
DIAGNOSIS = "tests/peer/cli/test_diagnosis.py"
WRONG_STARTS = "tests/e2e/test_wrong_starts.py"
DATA_FOLDERS = "tests/e2e/test_data_folders.py"

DIRECT = "tests/peer/http/test_direct.py"
PLAIN_GO_DIRECT = f"{DIRECT}::test_plain_requests_go_the_direct_way_and_no_others"

DIRECT_FILE = "peer/http/direct.py"
CATALOG_FILE = "protocol/catalog.py"
FORKS_FILE = "protocol/forks.py"
UNDOING_FILE = "protocol/undoing.py"
REPLICA_FILE = "protocol/replica.py"
OPS_FILE = "protocol/ops.py"
CODEC_FILE = "protocol/codec.py"
STORE_FILE = "protocol/store.py"
IDENTITY_FILE = "protocol/identity.py"


@dataclass(frozen=True)
class Mutant:
    """One planted bug: in `file`, `old`, which is there exactly once, becomes `new`, and one of `tests` must fail."""

    name: str
    says: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...] = (HISTORIES,)


MUTANTS = (
    # --- the version vector and the order of ops (rules 1 and 2) ---
    Mutant(
        "vv-past-a-gap",
        "An op is applied although ops of its origin before it are missing.",
        CATALOG_FILE,
        "    if op.dot.seq != seen + 1 or any(",
        "    if any(",
    ),
    Mutant(
        "vv-before-its-delta",
        "A merge raises the version vector first and looks at what it lacked afterwards.",
        CATALOG_FILE,
        "    mine = store.version_vector()\n    for op in store.live():",
        "    for origin, seq in their_vv.items():\n"
        "        store.advance(origin, max(seq, store.seen(origin)))\n"
        "    mine = store.version_vector()\n    for op in store.live():",
    ),
    Mutant(
        "vv-raised-for-an-op-that-waits",
        "An op whose time has not come is not applied, and the version vector covers it all the same.",
        CATALOG_FILE,
        "        return Verdict.TOO_EARLY\n    _take_effect",
        "        store.advance(origin, max(seen, min(seq, seen + 1)))\n"
        "        return Verdict.TOO_EARLY\n    _take_effect",
    ),
    Mutant(
        "suffix-by-origin-and-seq",
        "Ops travel in the order of their dots and not of their arrival.",
        REPLICA_FILE,
        "self.store.raw_log_after(their_vv)",
        "sorted(self.store.raw_log_after(their_vv), reverse=True)",
    ),
    Mutant(
        "suffix-from-below-the-floor",
        "Who is below a floor gets what is left of the log instead of the whole state.",
        REPLICA_FILE,
        "        if not covers_all(their_vv, self.store.floors()):\n            return None\n",
        "",
    ),
    Mutant(
        "needs-nothing",
        "A rumor is applied without what it removes or holds.",
        CATALOG_FILE,
        " or any(store.seen(dot.origin) < dot.seq for dot in needs_of(op)):",
        ":",
    ),
    Mutant(
        "hold-before-its-put",
        "A hold is applied before the put it holds.",
        OPS_FILE,
        "        case Hold(put=put):\n            return (put,)",
        "        case Hold():\n            return ()",
    ),
    Mutant(
        "removal-before-what-it-removes",
        "A put or delete is applied before the versions it replaces.",
        OPS_FILE,
        "            return supersedes\n",
        "            return ()\n",
    ),
    Mutant(
        "drop-before-its-holds",
        "A drop is applied before the holds it ends.",
        OPS_FILE,
        "            return supersedes + up_to",
        "            return ()",
    ),
    Mutant(
        "truncated-beyond-what-was-applied",
        "A log is cut further than it was applied.",
        REPLICA_FILE,
        "            floor = self.store.end_of_log(origin, min(seq, self.store.seen(origin)))",
        "            floor = self.store.end_of_log(origin, seq) and seq",
        (REPLICA,),
    ),
    # --- what ops do ---
    Mutant(
        "forgotten-supersede",
        "A put leaves the versions it replaces alive.",
        CATALOG_FILE,
        "            _end_puts(store, op.supersedes)\n            make_live(store, op)",
        "            make_live(store, op)",
    ),
    Mutant(
        "only-the-shown-version-superseded",
        "A write replaces only the version that is shown, and not its siblings.",
        REPLICA_FILE,
        "for put in self.store.puts_of(file_key)))",
        "for put in self.store.puts_of(file_key)[-1:]))",
    ),
    Mutant(
        "hold-outlives-its-put",
        "A removed put leaves its holds alive.",
        CATALOG_FILE,
        "    if isinstance(op, Put):\n        for hold in store.holds_of(op.dot):\n            end(store, hold)\n",
        "",
    ),
    Mutant(
        "hold-of-a-removed-put",
        "A hold that is heard after its put was removed comes to life.",
        CATALOG_FILE,
        "        if store.put_at(hold.put) is not None:\n            make_live(store, hold)",
        "        make_live(store, hold)",
    ),
    Mutant(
        "drop-of-everything-ignored",
        "A drop of all holds up to a seq ends none.",
        CATALOG_FILE,
        "            for origin, seq in op.up_to:",
        "            for origin, seq in op.up_to[:0]:",
    ),
    Mutant(
        "drop-of-everything-but-the-last",
        "A drop of all holds up to a seq spares that of the seq itself.",
        CATALOG_FILE,
        "store.holds_from(origin, seq)",
        "store.holds_from(origin, seq - 1)",
    ),
    Mutant(
        "drop-of-this-life-only",
        "A peer that lost its chunks takes back only what it declared since its last start.",
        REPLICA_FILE,
        "for hold in self.store.holds_by(self.me)}",
        "for hold in self.store.holds_by(self.me) if hold.dot.origin == self.origin}",
    ),
    # --- a put that is held, and runs of holds ---
    Mutant(
        "drop-ends-the-put",
        "A drop of the hold that a put declares ends the put too.",
        CATALOG_FILE,
        "                end_if_live(store, store.hold_at(dot))\n",
        "                end_if_live(store, store.hold_at(dot))\n"
        "                end_if_live(store, store.put_at(dot))\n",
    ),
    Mutant(
        "held-put-heard-without-its-hold",
        "What a put says of its writer's hold is not heard by others.",
        CODEC_FILE,
        "read_manifest(first), read_dots(second), kind == _HELD_PUT)",
        "read_manifest(first), read_dots(second))",
    ),
    Mutant(
        "state-keyed-by-dot-alone",
        "A put that came in with a whole state is taken for the hold of the same dot.",
        STORE_FILE,
        "        return (isinstance(op, Hold), op.dot) in self._staged",
        "        return (False, op.dot) in self._staged or (True, op.dot) in self._staged",
    ),
    Mutant(
        "rows-keyed-by-dot-alone",
        "The same, of the table that whole states come in through.",
        "peer/store/incoming.py",
        "            (isinstance(op, Hold), *op.dot.origin, op.dot.seq),",
        "            (not isinstance(op, Hold) or op.put != op.dot, *op.dot.origin, op.dot.seq),",
        (STORE,),
    ),
    Mutant(
        "run-covers-its-first-dot-only",
        "A version vector moves on by one for a run, and the next op takes a dot of it.",
        CATALOG_FILE,
        "    store.advance(origin, seq)\n    return Verdict.APPLIED",
        "    store.advance(*op.dot)\n    return Verdict.APPLIED",
    ),
    Mutant(
        "run-applied-in-part",
        "Of a run that is known in part the rest is applied.",
        CATALOG_FILE,
        "    if op.dot.seq != seen + 1 or any(",
        "    if op.dot.seq > seen + 1 or any(",
        (REPLICA,),
    ),
    Mutant(
        "run-known-in-part-not-disputed",
        "A run of which a part is known waits for its time, which never comes.",
        FORKS_FILE,
        "        if op.dot.seq <= store.seen(op.dot.origin) < last_dot(op).seq:",
        "        if False:",
        (FORKS,),
    ),
    Mutant(
        "nothing-known-inside-a-run",
        "Inside a run no running hash is known, so that another log with an end there is not told apart.",
        STORE_FILE,
        "            seqs = range(seq, last_dot(op).seq + 1)",
        "            seqs = range(last_dot(op).seq, last_dot(op).seq + 1)",
        (FORKS,),
    ),
    Mutant(
        "nothing-known-inside-a-run-on-disk",
        "The same, of the log in the database.",
        "peer/store/rows.py",
        'WHERE origin = ? AND seq >= ? ORDER BY seq LIMIT 1"\n    found',
        'WHERE origin = ? AND seq = ? ORDER BY seq LIMIT 1"\n    found',
        (STORE,),
    ),
    Mutant(
        "vector-into-a-run-taken-over",
        "A whole state is taken over though its version vector covers a part of a run.",
        FORKS_FILE,
        "    return any(store.end_of_log(origin, seq) != seq for origin, seq in logged)",
        "    return any(store.end_of_log(origin, seq) > seq for origin, seq in logged)",
        (REPLICA,),
    ),
    Mutant(
        "written-again-is-held-unseen",
        "A put that is written again says that it is held, and nobody has looked.",
        UNDOING_FILE,
        "supersedes=self._now(op.supersedes), is_held=False)",
        "supersedes=self._now(op.supersedes))",
        (FORKS,),
    ),
    Mutant(
        "sum-not-lowered",
        "A dot that ends stays in the sum.",
        CATALOG_FILE,
        "(store.state_sum() - digest_of(op))",
        "(store.state_sum() - 0)",
    ),
    Mutant(
        "sum-not-lowered-for-purged-holds",
        "Holds that go with their put stay in the sum.",
        CATALOG_FILE,
        "            end(store, hold)\n    store.remove(op)",
        "            store.remove(hold)\n    store.remove(op)",
    ),
    # --- dots and epochs (rule 3) ---
    Mutant(
        "dot-reused-after-a-restore",
        "A peer writes under the same epoch in all its lives.",
        REPLICA_FILE,
        "Origin(self.me, self._chance.getrandbits(EPOCH_BITS))",
        "Origin(self.me, 1)",
    ),
    Mutant(
        "resumed-image-not-noticed",
        "A peer that hears of its own epoch beyond its last seq goes on under it.",
        REPLICA_FILE,
        "        if known > self.store.seen(self.origin):",
        "        if known < 0:",
    ),
    # --- forked logs (rule 7) ---
    Mutant(
        "forks-not-noticed",
        "What another peer says of a log is not compared with ours.",
        FORKS_FILE,
        "        elif store.log_hash(dot) not in (None, log_hash):",
        "        elif False:",
        (FORKS,),
    ),
    Mutant(
        "names-not-claimed",
        "Nothing is said of the logs whose ops are only named.",
        FORKS_FILE,
        "            named[dot.origin] = max(dot.seq, named.get(dot.origin, 0))",
        "            pass",
        (FORKS,),
    ),
    Mutant(
        "what-comes-again-not-compared",
        "Ops that are known are not compared with those that were heard before.",
        FORKS_FILE,
        "        if not store.has_given_up() and (seq > seen or (last.seq <= seen and last in fingerprints)):",
        "        if not store.has_given_up():",
        (FORKS,),
    ),
    Mutant(
        "image-behind-its-own-log-trusts-it",
        "A resumed image goes on from what others have of its log, though it wrote something else there.",
        FORKS_FILE,
        '    return last.seq == 0 or fingerprints.get(last, b"") == store.log_hash(last)',
        "    return True",
        (FORKS,),
    ),
    Mutant(
        "branch-heard-again",
        "A branch that was given up is heard again from who has it.",
        FORKS_FILE,
        "        if store.was_given_up(log_hash):",
        "        if False:",
        (FORKS,),
    ),
    Mutant(
        "disputed-dots-not-given-back",
        "A peer at a fork keeps the dots that name two ops.",
        UNDOING_FILE,
        "                store.rewind(origin, seq)",
        "                pass",
        (FORKS,),
    ),
    Mutant(
        "disputed-rows-stay",
        "A peer at a fork keeps the rows of the dots it gave back.",
        UNDOING_FILE,
        "            catalog.end(self._store, one)",
        "            pass",
        (FORKS,),
    ),
    Mutant(
        "disputed-names-kept",
        "What is written again under a new name still refers to the old names.",
        UNDOING_FILE,
        "        return dot.seq > self._stands.get(dot.origin, dot.seq)",
        "        return dot.origin in self._disputed and dot.seq > self._stands[dot.origin]",
        (FORKS,),
    ),
    Mutant(
        "written-again-drop-forgets-what-stands",
        "A drop of everything that is written again spares the holds before the fork.",
        UNDOING_FILE,
        "            if kept:",
        "            if kept == seq:",
        (FORKS,),
    ),
    Mutant(
        "what-was-removed-is-written-again",
        "An upload that others removed before a fork was found comes back with it.",
        UNDOING_FILE,
        "                case Put() if op.dot in self._was_live and self._is_ours(op):",
        "                case Put() if self._is_ours(op):",
        (FORKS,),
    ),
    Mutant(
        "removals-on-a-branch-forgotten",
        "What a third peer removed on a branch that was given up comes back when its owner writes it again.",
        UNDOING_FILE,
        "        self._store.give_up([mark_of(manifest)])",
        "        pass",
        (FORKS,),
    ),
    Mutant(
        "everybody-writes-a-log-again",
        "Whoever followed a branch that was given up writes it again too, so that its files are there twice.",
        UNDOING_FILE,
        "        return op.dot.origin.node_id == self._me or op.dot.origin not in self._disputed",
        "        return True",
        (FORKS,),
    ),
    Mutant(
        "whole-states-of-another-branch-taken-over",
        "A whole state is taken over though its logs are not ours.",
        REPLICA_FILE,
        "        if heard.disputed or not forks.is_comparable(self.store, their_vv, compared):",
        "        if not forks.is_comparable(self.store, their_vv, compared):",
        (FORKS,),
    ),
    Mutant(
        "whole-states-compared-too-early",
        "A whole state is taken over though more was heard since its logs were compared with ours.",
        REPLICA_FILE,
        "        if heard.disputed or not forks.is_comparable(self.store, their_vv, compared):",
        "        if heard.disputed:",
        (FORKS,),
    ),
    Mutant(
        "content-goes-with-a-branch",
        "Content is thrown away when a peer goes back, before it knows under which names it comes again.",
        "peer/store/holding.py",
        "        store.pin_contents()\n        set_meta_value(store.connection, PINNED_FOR, origin.node_id)\n",
        "        set_meta_value(store.connection, PINNED_FOR, origin.node_id)\n",
        (PEER_FORKS,),
    ),
    # --- a peer and its disk (rule 4) ---
    Mutant(
        "own-holds-not-told",
        "A peer is not told of holds of its own that it forgot and its disk does not back.",
        REPLICA_FILE,
        "        heard.my_holds += [hold for hold in holds_in(op) if self.store.hold_at(hold.dot) is not None]",
        "        pass",
    ),
    Mutant(
        "hold-of-an-own-put-not-told",
        "A peer that forgot an upload of its own is not told that it said to hold it.",
        REPLICA_FILE,
        "[hold for hold in holds_in(op) if self.store.hold_at(hold.dot) is not None]",
        "[hold for hold in holds_in(op) if hold.put != op.dot]",
    ),
    Mutant(
        "own-drops-not-told",
        "A peer is not told of drops of its own, so that what its disk backs stays undeclared.",
        REPLICA_FILE,
        "            heard.my_drops += 1",
        "            pass",
        (REPLICA,),
    ),
    Mutant(
        "declared-twice",
        "A peer declares again what it has declared.",
        REPLICA_FILE,
        "        return self.store.put_at(put) is not None and not self.my_holds_of(put)",
        "        return self.store.put_at(put) is not None",
        (REPLICA,),
    ),
    # --- whole states (rule 5) ---
    Mutant(
        "floor-not-raised-after-a-merge",
        "Who took over a whole state offers a log with a hole where that state came from.",
        CATALOG_FILE,
        "            store.raise_floor(origin, seq, log_hash)",
        "            pass",
    ),
    Mutant(
        "unpinned-snapshot",
        "A snapshot is read page by page while the peer goes on, and its version vector is that of the start.",
        "peer/world/disk.py",
        '        connection.execute("BEGIN")\n        # A transaction',
        "        # A transaction",
        (DATABASE,),
    ),
    Mutant(
        "merge-removes-what-the-other-never-saw",
        "A merge takes what the other peer lacks for removed, heard of or not.",
        CATALOG_FILE,
        "        if covers(their_vv, op.dot) and not store.is_incoming(op):",
        "        if not store.is_incoming(op):",
    ),
    Mutant(
        "merge-removes-nothing",
        "A merge keeps what the other peer has seen removed.",
        CATALOG_FILE,
        "        if covers(their_vv, op.dot) and not store.is_incoming(op):",
        "        if op.dot.seq < 0:",
    ),
    Mutant(
        "merge-revives",
        "A merge brings back what was removed here and is still live there.",
        CATALOG_FILE,
        "        if not covers(mine, op.dot) and _may_live(store, op):",
        "        if _live(store, op) is None and _may_live(store, op):",
    ),
    Mutant(
        "merged-hold-without-its-put",
        "A merge brings a hold to life whose put was removed here.",
        CATALOG_FILE,
        "        if not covers(mine, op.dot) and _may_live(store, op):",
        "        if not covers(mine, op.dot):",
    ),
    Mutant(
        "incoming-not-cleared",
        "What came in for a merge is still there for the next.",
        CATALOG_FILE,
        "    _cover(store, their_vv, fingerprints)\n    store.clear_incoming()\n\n\ndef unite",
        "    _cover(store, their_vv, fingerprints)\n\n\ndef unite",
    ),
    # --- disagreement (rule 6) ---
    Mutant(
        "disagreement-taken-for-deletions",
        "With equal version vectors and unequal sums, what one lacks is removed from the other.",
        REPLICA_FILE,
        "        return catalog.unite_incoming(self.store)",
        "        catalog.merge_incoming(self.store, self.store.version_vector())\n        return 0",
        (ROT,),
    ),
    Mutant(
        "disagreement-not-noticed",
        "Peers with equal version vectors never compare their sums.",
        REPLICA_FILE,
        "        return self.store.state_sum() != their_sum and",
        "        return False and",
        (ROT,),
    ),
    Mutant(
        "sum-not-recomputed",
        "After a disagreement the sum is left as wrong as it was.",
        REPLICA_FILE,
        "        self.store.set_state_sum(catalog.sum_of_rows(self.store))\n",
        "",
        (REPLICA,),
    ),
    # --- time ---
    Mutant(
        "stamps-not-observed",
        "What is written after hearing of a version may be stamped before it.",
        REPLICA_FILE,
        "                self.clock.observe(op.stamp, wall_ms)\n                self._note_own",
        "                self._note_own",
        (REPLICA,),
    ),
    Mutant(
        "wrong-clocks-pull",
        "One clock that is far ahead sets all the others.",
        IDENTITY_FILE,
        "        if ms_of_stamp(stamp) > wall_ms + self.DRIFT_MAX_MS:",
        "        if ms_of_stamp(stamp) < 0:",
        (REPLICA,),
    ),
    # --- bytes ---
    Mutant(
        "digest-of-what-was-superseded",
        "Who took a put over as state has another sum than who heard it.",
        CODEC_FILE,
        "    entry = Put(op.dot, op.stamp, op.manifest) if isinstance(op, Put) else op",
        "    entry = op",
        (CODEC,),
    ),
    Mutant(
        "vector-in-any-order",
        "Equal version vectors give different bytes.",
        CODEC_FILE,
        "for origin, seq in sorted(vv.items())]",
        "for origin, seq in vv.items()]",
        (CODEC,),
    ),
    Mutant(
        "deep-nesting-crashes",
        "A message nested deeply enough raises something nobody expects.",
        CODEC_FILE,
        "    return reprlib.repr(value)",
        "    return repr(value)[:80]",
        (CODEC + "::test_values_nested_without_end_are_malformed",),
    ),
    Mutant(
        "true-is-one",
        "A truth value passes for a number.",
        CODEC_FILE,
        "    if type(value) is not int or",
        "    if not isinstance(value, int) or",
        (CODEC + "::test_a_put_with_a_value_that_cannot_be_is_malformed",),
    ),
    # --- the store in memory ---
    Mutant(
        "floor-forgets-other-logs",
        "A floor that rises for one origin cuts the logs of all.",
        STORE_FILE,
        "if op.dot.origin != origin or last_dot(op).seq > seq]",
        "if last_dot(op).seq > seq]",
        (STORE,),
    ),
    Mutant(
        "rewound-log-stays",
        "A log that was rewound still has what was taken out.",
        STORE_FILE,
        "if op.dot.origin != origin or op.dot.seq <= seq]",
        "if op.dot.origin]",
        (STORE,),
    ),
    Mutant(
        "first-version-shown",
        "Of concurrent versions another one is shown than the latest.",
        STORE_FILE,
        "    return put.manifest.is_upload, put.stamp, put.dot",
        "    return put.manifest.is_upload, -put.stamp, put.dot",
        (STORE,),
    ),
    # --- database, disk and content ---
    Mutant(
        "look-up-on-a-disk-thread",
        "A disk thread looks something up over the event loop's connection.",
        "peer/store/collector.py",
        "            paths += self._take_unadopted()",
        "            paths += await self._env.run_blocking(Work.DISK, self._take_unadopted)",
        (HOLDING + "::test_what_a_failed_commit_was_to_adopt_goes_once_another_has_settled_it",),
    ),
    Mutant(
        "connections-shared-by-threads",
        "SQLite's binding does not check whose connection it is.",
        "peer/world/disk.py",
        "check_same_thread=True",
        "check_same_thread=False",
        (DATABASE + "::test_a_connection_is_of_use_on_its_own_thread_only",),
    ),
    Mutant(
        "members-looked-at-on-the-writers-thread",
        "An answer's transaction iterates over what the event loop changes.",
        "peer/gossip/answer.py",
        "            members=members,\n",
        "            members=self._others.membership.members(),\n",
        (HOLDING + "::test_members_are_looked_at_on_the_event_loop_only",),
    ),
    Mutant(
        "a-tail-outlives-its-log",
        "Rows that were taken back go on to other peers from memory.",
        "peer/store/catalog.py",
        "        self._is_cut = True",
        "        self._is_cut = False",
        (TAIL,),
    ),
    Mutant(
        "a-tail-gives-what-it-has",
        "Of what another peer lacks it gets what is in memory, and the rest is skipped.",
        "peer/store/tail.py",
        "        return found if not missing else None",
        "        return found",
        (TAIL,),
    ),
    # --- the direct way ---
    Mutant(
        "conditional-reads-go-direct",
        "A client that has a file already gets it once more, if it is small.",
        DIRECT_FILE,
        'b"if-none-match", ',
        "",
        (PLAIN_GO_DIRECT,),
    ),
    Mutant(
        "pages-go-direct",
        "A page of the web that may not ask reads small files.",
        DIRECT_FILE,
        '{b"origin", b"range",',
        '{b"range",',
        (PLAIN_GO_DIRECT,),
    ),
    Mutant(
        "any-name-goes-direct",
        "Whatever name a request gives this peer, it gets small files.",
        DIRECT_FILE,
        "        return host is not None and self._is_ours(scope, host)",
        "        return host is not None",
        (PLAIN_GO_DIRECT,),
    ),
    Mutant(
        "checksums-ignored-on-the-direct-way",
        "A small content is stored whatever checksum came with it.",
        DIRECT_FILE,
        'b"content-digest", b"content-md5"}',
        'b"content-digest"}',
        (PLAIN_GO_DIRECT,),
    ),
    Mutant(
        "found-for-ever",
        "A small file that was read once is what is read from then on.",
        DIRECT_FILE,
        "        if committed is not self._found_as_of or is_full:",
        "        if is_full:",
        (f"{DIRECT}::test_a_file_that_was_read_is_read_anew_after_each_change",),
    ),
    Mutant(
        "rot-goes-direct",
        "A small content that has rotted in the database is served.",
        "peer/files/downloads.py",
        "        return file if file is not None and is_good(file) else None",
        "        return file",
        (f"{DIRECT}::test_rot_in_the_database_never_leaves_by_the_direct_way_and_heals",),
    ),
    Mutant(
        "second-field-lost-on-the-direct-way",
        "What follows the file in a form is not looked at.",
        DIRECT_FILE,
        '    if end == -1 or body[end:] not in (closing + b"--\\r\\n", closing + b"--"):',
        "    if end == -1:",
        (PLAIN_GO_DIRECT,),
    ),
    Mutant(
        "deficits-end-with-their-transaction",
        "The queue does not say who lacks a new file.",
        "peer/store/catalog.py",
        "            self._write_deficits(put_row, items)\n        self._deficits.clear()",
        "            assert put_row or items\n        self._deficits.clear()",
        ("tests/peer/upkeep/test_repair.py",),
    ),
    Mutant(
        "a-receipt-for-having-heard",
        "A peer that has heard of a file counts as one that has it.",
        "peer/gossip/exchange.py",
        "        if wait.hold is not None and wait.hold not in turn.held:",
        "        if wait.hold is not None and turn.error:",
        ("tests/peer/files/test_uploads.py::test_a_peer_that_heard_of_a_file_and_cannot_take_it_is_in_no_receipt",),
    ),
    Mutant(
        "a-broken-answer-is-an-answer",
        "What came of an answer before the connection broke is taken for all of it.",
        "peer/world/outgoing.py",
        '            raise ConnectionError("the peer hung up in the middle of its answer")',
        "            self.is_whole = self.has_begun = True\n            return",
        (ENV,),
    ),
    Mutant(
        "one-bad-chunk-takes-all",
        "With a chunk that went bad goes everything else there is of its file.",
        "peer/store/catalog.py",
        "        for put_row, _ in broken:\n            self.unmark_held(put_row)",
        "        for put_row, put in broken:\n            self.release(put_row, put.manifest.chunks or ())",
        (HOLDING,),
    ),
    Mutant(
        "only-holders-are-asked",
        "A chunk is asked for only of those that hold its whole file.",
        "peer/gossip/fetching.py",
        "        return first + down + [node_id for node_id in reachable if node_id not in holders]",
        "        return first + down",
        (HOLDING,),
    ),
    Mutant(
        "discarded-in-doubt",
        "What a commit of unknown outcome was to adopt is removed at once.",
        "peer/store/collector.py",
        "        await self._database.wait_settled()\n",
        "",
        (HOLDING + "::test_what_a_failed_commit_was_to_adopt_goes_once_another_has_settled_it",),
    ),
    Mutant(
        "doubt-never-settled",
        "After a failed commit the writer waits for the next who has something to write.",
        "peer/store/database.py",
        "SETTLE_EVERY_S if self._is_in_doubt else math.inf",
        "math.inf",
        (HOLDING + "::test_what_a_failed_commit_was_to_adopt_goes_once_another_has_settled_it",),
    ),
    Mutant(
        "other-file-of-the-hash-removed",
        "A start removes a nameless file that is all there is of a chunk.",
        "peer/store/chunks.py",
        "            if others:\n",
        "            if not others:\n",
        (HOLDING + "::test_a_file_of_the_same_hash_stands_in_for_one_that_its_row_names_and_is_not_there",),
    ),
    Mutant(
        "uncommitted-vector-published",
        "What a roll-back failed to undo is told to others.",
        "peer/store/database.py",
        "            self._tell_doubt()\n",
        "            self._tell_doubt()\n            self._publish()\n",
        (DATABASE + "::test_what_was_rolled_back_is_told_to_nobody_even_if_rolling_back_failed",),
    ),
    Mutant(
        "registration-hides-an-upload",
        "A registration ranks by its time alone.",
        STORE_FILE,
        "    return put.manifest.is_upload, put.stamp, put.dot",
        "    return True, put.stamp, put.dot",
        (REGISTERING,),
    ),
    Mutant(
        "registered-without-asking",
        "Who can ask nobody registers all the same.",
        "peer/files/keys.py",
        "        await self._find_elsewhere(manifest.file_key)\n",
        "        await self._uploads.ask_targets(manifest.file_key)\n",
        (REGISTERING,),
    ),
    Mutant(
        "leases-not-renewed",
        "What an upload staged lapses while the rest still arrives.",
        "peer/files/pushing.py",
        "                nursery.start_soon(self._renew_leases)\n",
        "",
        (HOLDING,),
    ),
    Mutant(
        "content-without-identity",
        "Of two contents in the database one passes for the other.",
        "peer/store/holding.py",
        "        if is_good or store.chunk_row(chunk_hash) != row:",
        "        if (now := store.chunk_row(chunk_hash)) is None or now.serial != row.serial:",
        (HOLDING,),
    ),
    Mutant(
        "verified-once-counts-for-ever",
        "A step declares held what was verified before and replaced since.",
        "peer/store/holding.py",
        "        return verified is not None and self.database.store.chunk_row(chunk_hash) == verified",
        "        return verified is not None",
        (HOLDING,),
    ),
    Mutant(
        "false-hold-kept",
        "A read that finds no chunk of a file said to be held says nothing.",
        "peer/files/downloads.py",
        "                await self._here.doubt_hold(put.dot)",
        "                pass",
        (HOLDING,),
    ),
    Mutant(
        "false-hold-kept-from-peers",
        "A peer that is asked for a chunk it lacks of a file it says to hold says nothing.",
        "peer/http/peers.py",
        "            await here.doubt_hold(put)",
        "            pass",
        (HOLDING,),
    ),
    Mutant(
        "receipt-from-the-catalog",
        "A receipt names whoever once said to have the file.",
        "peer/files/uploads.py",
        "        confirmed = [delivery.node_id for delivery in deliveries if delivery.error is None]",
        "        confirmed = [holder for holder in self._state.holders(put.dot) if holder != self._state.me]",
        (HOLDING,),
    ),
    Mutant(
        "looked-up-once",
        "A chunk replaced between look-up and open is not looked up again.",
        "peer/store/holding.py",
        "        for _ in range(LOOKS_MAX):",
        "        for _ in range(1):",
        (HOLDING,),
    ),
    Mutant(
        "deletions-refused-on-a-full-disk",
        "A full disk refuses every step.",
        "peer/store/database.py",
        "                    if step.grows:\n                        self.check_space()",
        "                    self.check_space()",
        (SPACE,),
    ),
    Mutant(
        "reserve-kept",
        "What was set aside stays so when the disk is full.",
        "peer/store/space.py",
        "            self._env.disk.remove(RESERVE)\n        except StoreError as error:\n            log.error",
        "            pass\n        except StoreError as error:\n            log.error",
        (SPACE,),
    ),
    Mutant(
        "full-for-ever",
        "A peer whose disk was full takes no content when there is room again.",
        "peer/store/space.py",
        "                self.reason = None\n",
        "",
        (SPACE,),
    ),
    Mutant(
        "folder-left-unsynced",
        "A folder that is there already is not synced.",
        "peer/world/disk.py",
        "            folder.mkdir(parents=True, exist_ok=True)\n",
        "            if folder.is_dir():\n                return\n"
        "            folder.mkdir(parents=True, exist_ok=True)\n",
        (ENV,),
    ),
    Mutant(
        "look-up-that-fails-ends-the-peer",
        "A repair that cannot look up what became of its file ends the peer.",
        "peer/upkeep/repair.py",
        "        except StoreError:\n            # Nobody knows",
        "        except KeyError:\n            # Nobody knows",
        (HOLDING + "::test_a_repair_that_cannot_look_up_what_became_of_its_file_tries_again",),
    ),
    Mutant(
        "failing-removal-keeps-others",
        "A chunk file that cannot be removed keeps those behind it.",
        "peer/store/chunk_files.py",
        '            except StoreError as error:\n                log.warning("an unused chunk file',
        '            except KeyError as error:\n                log.warning("an unused chunk file',
        (CHUNKS,),
    ),
    Mutant(
        "catalog-read-after-the-commit",
        "An upload that is written fails when the receipt's look-ups do.",
        "peer/files/delivery.py",
        "            except StoreError as error:\n                return Delivery",
        "            except KeyError as error:\n                return Delivery",
        (HOLDING,),
    ),
    # --- what runs without being asked ---
    Mutant(
        "failing-step-ends-the-worker",
        "A disk that fails one step of a worker ends the peer.",
        "peer/worker.py",
        "            except StoreError as error:",
        "            except KeyError as error:",
        (WORKER,),
    ),
    Mutant(
        "woken-while-working-forgotten",
        "What wakes a worker during its step is forgotten when the step ends.",
        "peer/worker.py",
        "            self._steps += 1",
        "            self._steps += 1\n            self._woken = trio.Event()",
        (WORKER,),
    ),
    # --- least copies ---
    Mutant(
        "put-before-its-copies",
        "With least copies asked for, the put is written before enough peers have the chunks.",
        "peer/files/uploads.py",
        "            if new.min_copies > 1:",
        "            if not new.min_copies:",
        (f"{MIN_COPIES}::test_too_few_peers_are_an_error_and_the_older_version_stays",),
    ),
    Mutant(
        "fewer-copies-than-asked",
        "A peer that is gone after it had promised a copy is not missed.",
        "peer/files/uploads.py",
        "        if len(receipt.durable_copies) < new.min_copies:",
        "        if not receipt.durable_copies:",
        (
            f"{MIN_COPIES}::test_a_target_that_dies_after_it_promised_makes_an_error_and_repeating_the_upload_completes_it",
        ),
    ),
    # --- crowds ---
    Mutant(
        "idle-clients-keep-their-place",
        "Connections that do nothing make no room for new ones.",
        "peer/world/connection.py",
        "            if idle is not None:",
        "            if idle is None:",
        (SERVER,),
    ),
    Mutant(
        "peers-make-room-for-clients",
        "What clients do costs peers their connections.",
        "peer/world/connection.py",
        "            self._peers.add(connection)",
        "            self._clients.add(connection)",
        (SERVER,),
    ),
    # --- what other peers, broken messages and doubled ids can do ---
    Mutant(
        "failed-task-ends-the-peer",
        "A task that fails as nobody foresaw is not started again.",
        "peer/tasks.py",
        "            except Exception:\n                self.failures",
        "            except KeyError:\n                self.failures",
        (TASKS,),
    ),
    Mutant(
        "datagram-silences-gossip",
        "One message that gossip stumbles over stops it.",
        "peer/gossip/membership.py",
        "        except Exception:",
        "        except KeyError:",
        (f"{UNFORESEEN}::test_a_message_that_gossip_stumbles_over_does_not_silence_it",),
    ),
    Mutant(
        "exchange-waits-for-ever",
        "Who waits for an exchange that failed as nobody foresaw is not told.",
        "peer/gossip/exchange.py",
        "                turn.done.set()",
        "                turn.done = trio.Event()",
        (f"{UNFORESEEN}::test_who_waits_for_an_exchange_that_fails_is_told",),
    ),
    Mutant(
        "members-from-anywhere",
        "Who brings members need not know of which cluster they are.",
        "peer/http/peers.py",
        " and (cluster_id or members):",
        " and cluster_id:",
        (f"{HOSTILE}::test_who_brings_members_must_name_the_cluster",),
    ),
    Mutant(
        "any-incarnation-will-do",
        "A record with the highest number there is has the last word for ever.",
        "protocol/membership.py",
        "        if not 0 < heard.incarnation - peer.member.incarnation <= INCARNATION_STEP_MAX:",
        "        if heard.incarnation <= peer.member.incarnation:",
        (f"{HOSTILE}::test_a_poisoned_record_isolates_nobody_for_good",),
    ),
    Mutant(
        "names-that-can-be-none",
        "An address no resolver takes comes out of a request as an error nobody expects.",
        "peer/gossip/client.py",
        "RequestFailed, ConfigError, UnicodeError) as error:",
        "RequestFailed, ConfigError) as error:",
        (f"{CLIENT}::test_an_address_that_can_be_none_is_unreachable_and_no_other_error",),
    ),
    Mutant(
        "whole-states-pile-up",
        "Each exchange while behind asks for one more whole state.",
        "peer/gossip/whole_state.py",
        "        if node_id not in self._pending:",
        "        if node_id:",
        (f"{UNFORESEEN}::test_whole_states_asked_for_again_and_again_are_fetched_once",),
    ),
    Mutant(
        "stand-ins-without-end",
        "A receipt waits for every peer that might stand in, however long each is silent.",
        "peer/files/delivery.py",
        "            while spare and self._env.clock.now() < give_up_at:",
        "            while spare:",
        (f"{UNFORESEEN}::test_a_receipt_does_not_wait_for_one_silent_peer_after_the_other",),
    ),
    Mutant(
        "standstill-goes-on",
        "Ops that cannot be applied, for rows of the log are lost, are sent for ever.",
        "peer/gossip/exchange.py",
        "        if request.ops and is_still_there and not self._is_stuck:",
        "        if request.behind and is_still_there:",
        (f"{EXCHANGE}::test_a_lost_row_of_a_log_is_healed_by_a_whole_state_and_does_not_make_peers_spin",),
    ),
    Mutant(
        "drop-too-large-to-send",
        "Holds are taken back in one op, however many they are.",
        "protocol/replica.py",
        "DROP_DOTS_MAX = 20_000",
        "DROP_DOTS_MAX = 200_000",
        (f"{REPLICA}::test_the_largest_ops_there_can_be_fit_a_message",),
    ),
    Mutant(
        "doubles-go-on",
        "Of two processes with one id none finds out that it has to stop.",
        "protocol/membership.py",
        "must_stop=self._life > message.life",
        "must_stop=False",
        (MEMBERSHIP,),
    ),
    Mutant(
        "late-datagram-stops-a-peer",
        "A datagram of an earlier run of a peer counts as another process that lives.",
        "protocol/membership.py",
        "        if message.number != self._double_number:",
        "        if message.number < 0:",
        (MEMBERSHIP,),
    ),
    # --- damaged rows ---
    Mutant(
        "damage-forgotten",
        "A peer whose rows do not give their sum goes on as if they did.",
        "peer/store/holding.py",
        "        self.note_damage()\n",
        "",
        (f"{EXCHANGE}::test_a_damaged_peer_alone_serves_on_remembers_it_and_gives_its_state_to_nobody",),
    ),
    Mutant(
        "damaged-state-handed-on",
        "What a peer with damaged rows lacks is taken for deleted by who takes its whole state over.",
        "peer/gossip/whole_state.py",
        "                    if head.is_damaged and reason is not Reason.DISAGREEMENT:",
        "                    if head.is_damaged and reason is Reason.DISAGREEMENT:",
        (f"{EXCHANGE}::test_a_damaged_peer_alone_serves_on_remembers_it_and_gives_its_state_to_nobody",),
    ),
    Mutant(
        "contents-go-with-damaged-rows",
        "The content of files whose rows are replaced is thrown away.",
        "peer/store/holding.py",
        "        store.pin_contents()\n        adopted",
        "        adopted",
        (f"{EXCHANGE}::test_damaged_rows_are_replaced_by_another_peers_and_what_only_this_one_has_stays",),
    ),
    Mutant(
        "log-beyond-a-state-forgotten",
        "What a damaged peer alone has in its log is lost when it takes over another one's state.",
        "protocol/replica.py",
        "        beyond = list(self.store.log_after(their_vv))",
        "        beyond: list[Op] = []",
        (DAMAGED_ROWS,),
    ),
    Mutant(
        "altered-rows-stay",
        "Rows that are not what they were stay, when only what is missing comes back.",
        "protocol/catalog.py",
        "        if mine is not None and digest_of(mine) != digest_of(op):",
        "        if mine is not None and digest_of(mine) == 0:",
        (DAMAGED_ROWS,),
    ),
    # --- who may ask ---
    Mutant(
        "any-host-will-do",
        "A name of a page's own that points here is answered.",
        "peer/http/callers.py",
        "        return is_address or name in self._names",
        "        return True",
        (CALLERS,),
    ),
    Mutant(
        "any-origin-may-write",
        "Pages of elsewhere may use a peer through the browser of its user.",
        "peer/http/callers.py",
        "        elif not self._may_ask(scope, origin):",
        "        elif not origin:",
        (CALLERS,),
    ),
    Mutant(
        "unasked-counts-as-held",
        "A receipt names a peer that could not be asked, for what the catalog had of it before it lost its disk.",
        "peer/gossip/exchange.py",
        "        return request, hold[len(asked) :], suffix.more",
        "        return request, hold[len(asked) :] if suffix is not None else [], suffix.more",
        (f"{EXCHANGE}::test_whether_a_peer_could_be_asked_to_hold_a_file_is_told",),
    ),
    Mutant(
        "sent-again-is-what-was-removed",
        "An upload that comes again is the version from before, which others may have removed by now.",
        "peer/files/uploads.py",
        "            put = self._here.replica.put(written, self._here.wall_ms(), is_held=True)\n",
        "            versions = self._here.database.store.puts_of(manifest.file_key)\n"
        "            new = None if known else self._here.replica.put(written, self._here.wall_ms(), is_held=True)\n"
        "            put = new or versions[-1]\n",
        (
            "tests/peer/files/test_uploads.py"
            "::test_what_is_sent_again_stays_though_the_first_was_removed_and_its_peer_had_not_heard_of_that",
        ),
    ),
    # --- growing ---
    Mutant(
        "uploads-wait-for-who-is-far-behind",
        "A target that has much to hear yet is asked all the same, and its uploads wait for all of that.",
        "peer/gossip/exchange.py",
        "        if hold is not None and self.link(node_id).is_far_behind():",
        "        if hold is not None and node_id == self._config.node_id:",
        (f"{CATCHING_UP}::test_uploads_do_not_wait_for_a_peer_that_is_far_behind_and_stand_ins_take_their_copies",),
    ),
    Mutant(
        "catches-up-from-all-at-once",
        "A peer that is far behind has all others send it the same.",
        "peer/gossip/catching_up.py",
        "        return self._source == node_id\n",
        "        return True\n",
        (f"{CATCHING_UP}::test_what_many_have_is_fetched_once",),
    ),
    Mutant(
        "left-behind-for-good",
        "Whoever was not asked because another peer was is never asked afterwards.",
        "peer/gossip/catching_up.py",
        "        found = list(self._others)\n",
        "        found = list(self._others)[:0]\n",
        (f"{CATCHING_UP}::test_there_is_one_source_until_it_has_no_more_and_then_the_others_have_their_turn",),
    ),
    Mutant(
        "requeue-forgets-where-it-stopped",
        "What is left of a partition when a step ends counts as done.",
        "peer/store/members.py",
        "            return done, rows[-1]",
        "            return done + 1, 0",
        (f"{PLACEMENT}::test_members_change_the_queue_alike_in_steps_of_any_size",),
    ),
    Mutant(
        "requeue-keeps-what-nobody-lacks",
        "A peer that is no target any more is still said to lack the file.",
        "peer/store/catalog.py",
        "            unwanted += [(item,) for node, item in queued.get(row, ()) if node not in lacking]",
        "            unwanted += [(item,) for node, item in queued.get(row, ()) if node in lacking]",
        (f"{PLACEMENT}::test_members_change_the_queue_alike_in_steps_of_any_size",),
    ),
    Mutant(
        "deficit-skipped-between-pages",
        "What lies between the first page of what a peer lacks and the last one is never looked at.",
        "peer/store/lookups.py",
        '        " AND id > ? ORDER BY id LIMIT ?",',
        '        " AND id > ? ORDER BY id DESC LIMIT ?",',
        (f"{DEFICITS}::test_each_file_comes_once_and_none_before_one_with_fewer_copies",),
    ),
    Mutant(
        "index-behind-its-rows",
        "The index by which a chunk finds its files is not told of files of several chunks.",
        "peer/store/catalog.py",
        "        add_chunk_uses(self.connection, row_id, manifest.chunks or ())\n",
        "",
        ("tests/peer/store/test_chunk_uses.py::test_a_chunk_finds_the_files_that_are_held_and_have_it",),
    ),
    Mutant(
        "clients-make-no-difference",
        "Work in the background takes all there is, whether clients are being served or not.",
        "peer/pace.py",
        "        if self.is_serving() or any(",
        "        if self.is_serving() and any(",
        ("tests/peer/test_pace.py::test_while_this_peer_serves_clients_work_rests_in_proportion_and_never_long",),
    ),
    Mutant(
        "many-copies-first",
        "Files of which there are copies enough are repaired before those of which there is one.",
        "peer/upkeep/deficits.py",
        "min(self._more_copies)",
        "max(self._more_copies)",
        (f"{DEFICITS}::test_each_file_comes_once_and_none_before_one_with_fewer_copies",),
    ),
    Mutant(
        "gives-its-state-unverified",
        "A peer gives its whole state to others before it knows that its rows are well.",
        "peer/http/peers.py",
        "    if not services.here.verified.is_set():",
        "    if services.here.is_damaged:",
        (f"{VERIFICATION}::test_until_rows_are_looked_over_a_peer_serves_and_neither_gives_nor_takes_a_whole_state",),
    ),
    Mutant(
        "merges-into-rows-unverified",
        "A peer takes over a whole state before it knows that its own rows are well.",
        "peer/gossip/whole_state.py",
        "        await self._here.verified.wait()",
        "        await trio.lowlevel.checkpoint()",
        (f"{VERIFICATION}::test_until_rows_are_looked_over_a_peer_serves_and_neither_gives_nor_takes_a_whole_state",),
    ),
    Mutant(
        "sum-of-another-moment",
        "Rows that were looked over are compared with the sum of now, not with that of the moment they are of.",
        "peer/upkeep/verification.py",
        "            expected = await self._env.run_blocking(Work.DATABASE_READ, _sum_of, pinned)",
        "            expected = self._here.database.committed.state_sum",
        (f"{VERIFICATION}::test_rows_that_are_well_are_found_well_while_files_come_and_go",),
    ),
    # --- starting, and the command line ---
    Mutant(
        "lone-peer-goes-over-unasked",
        "A peer that founded a cluster leaves it for another one though nobody said so.",
        "peer/gossip/joining.py",
        "    if not rejoin:\n        raise",
        "    if False:\n        raise",
        (JOINING,),
    ),
    Mutant(
        "member-leaves-its-cluster",
        "A peer with other members goes over to a stranger's cluster, and its files are left with them.",
        "peer/gossip/joining.py",
        "    if knows_others:\n        raise",
        "    if False:\n        raise",
        (JOINING,),
    ),
    Mutant(
        "stranger-noticed-by-nobody",
        "A peer waits, alone, for one that belongs to another cluster.",
        "peer/gossip/joining.py",
        "                    on_stranger(_other_cluster(",
        "                    str(_other_cluster(",
        (JOINING,),
    ),
    Mutant(
        "founds-before-it-looks",
        "A start that fails at the facade leaves a cluster founded.",
        "peer/node.py",
        "            await check_facade(self.env, server, self.config.facade, cluster_id)",
        "            pass",
        (f"{WRONG_STARTS}::test_a_failed_first_start_founds_nothing",),
    ),
    Mutant(
        "complains-each-second",
        "What goes wrong again and again fills the log.",
        "peer/complaints.py",
        "        if sentence == before and self._now() - said_at < REMIND_S:",
        "        if sentence == before and self._now() - said_at < 0:",
        (COMPLAINTS,),
    ),
    Mutant(
        "place-lost-to-a-cancelled-request",
        "A request that is cancelled keeps its place for ever.",
        "peer/gossip/client.py",
        "            async with self._limiter(peer.node_id):\n                answer",
        "            await self._limiter(peer.node_id).acquire_on_behalf_of(object())\n"
        "            if True:\n                answer",
        (f"{CLIENT}::test_cancelled_requests_cost_no_place_and_no_connection",),
    ),
    Mutant(
        "download-not-verified",
        "What arrived is given the file's name, whatever it is.",
        "peer/cli/transfers.py",
        "        if self._digest.hexdigest() != self.sha256:",
        "        if not self._digest.hexdigest():",
        (REMOTE,),
    ),
    Mutant(
        "download-begins-anew",
        "A download that broke off is asked for from its beginning and appended to what is there.",
        "peer/cli/transfers.py",
        '            headers["range"] = f"bytes={self.received}-"',
        '            headers["range"] = "bytes=0-"',
        (REMOTE,),
    ),
    Mutant(
        "upload-without-its-hash",
        "A peer is not told what it should receive, and acknowledges whatever it got.",
        "peer/cli/transfers.py",
        '    headers = {"content-length": str(size), "repr-digest": f"sha-256=:{base64.b64encode(digest).decode()}:"}',
        '    headers = {"content-length": str(size + 0 * len(base64.b64encode(digest)))}',
        (REMOTE,),
    ),
    Mutant(
        "file-name-is-a-place",
        "A file is saved where the name it was uploaded under says.",
        "peer/cli/transfers.py",
        '    last = re.split(r"[/\\\\:]", name)[-1]',
        "    last = name",
        (REMOTE,),
    ),
    Mutant(
        "check-believes-file-names",
        "The check of a data folder takes a chunk for good because its file is there.",
        "peer/store/check.py",
        '    return None if digest.digest() == chunk_hash else "has other bytes than its name says"',
        "    return None",
        (f"{DATA_FOLDERS}::test_every_kind_of_damage_is_found_and_nothing_else",),
    ),
    Mutant(
        "down-is-no-problem",
        "A cluster with a peer down is told to be well.",
        "peer/cli/diagnosis.py",
        "    if not node.is_up:\n        heard",
        "    if not node.is_up and not node.last_heard:\n        heard",
        (DIAGNOSIS,),
    ),
)
