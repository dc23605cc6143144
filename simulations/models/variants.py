"""What Spin is asked: each model as it should be, and with one deliberate fault or two, which it must find."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Variant:
    """One question. defines: the model's -D flags. breaks: the promise that must be seen broken; "": none may be, and
    the search must be complete. live: whether "somebody leads and stays" is asked, under weak fairness.
    whole: every line of the model must be reached (so that what passes is not idle). long: for the proof only.
    """

    model: str
    name: str
    defines: tuple[str, ...] = ()
    breaks: str = ""
    live: bool = False
    whole: bool = False
    long: bool = False


def _protocol(name: str, *defines: str, breaks: str = "", whole: bool = False, long: bool = False) -> Variant:
    return Variant("protocol", name, defines, breaks, whole=whole, long=long)


def _election(
    name: str, *defines: str, breaks: str = "", live: bool = False, whole: bool = False, long: bool = False
) -> Variant:
    return Variant("election", name, defines, breaks, live, whole, long)


#: 2 instances, 2 terms each, 3 changes.
PROTOCOL = (
    _protocol("fence and expected tail", whole=True),
    _protocol("expected tail alone", "NO_FENCE"),
    _protocol("fence alone", "NO_CAS"),
    _protocol("tail read first, expected tail compared", "TAIL_FIRST"),
    _protocol("tail read some time after the fence", "READ_AFTER"),
    _protocol("the coordinator is wiped", "WIPE"),
    _protocol("two publishers, 2 + 1 changes", "NP=2", "EV0=2", "EV1=1"),
    _protocol("two publishers, 2 + 2 changes", "NP=2", "EV0=2", "EV1=2", long=True),
    _protocol("three terms each", "NT=3", long=True),
    _protocol("tail read first, expected tail not compared", "TAIL_FIRST", "NO_CAS", breaks="no_duplicate"),
    _protocol("neither fence nor expected tail", "NO_FENCE", "NO_CAS", breaks="no_duplicate"),
    _protocol("tail read after the fence, no fence compared", "READ_AFTER", "NO_FENCE", breaks="epochs_grow"),
    _protocol("receipts before the append", "ACK_FIRST", breaks="no_lost_ack"),
    _protocol("a reply of the log for another append", "REPLY_UNTIED", breaks="no_lost_ack"),
    _protocol("an answer for another change", "ANSWER_UNTIED", breaks="no_lost_ack"),
    _protocol("an append without an answer counts as stored", "UNKNOWN_STORED", breaks="no_lost_ack"),
    _protocol("known numbers not read from the log", "NO_REBUILD", breaks="no_duplicate"),
    _protocol("visible before durable", "VISIBLE_FIRST", breaks="prefix"),
    _protocol("frames taken without a look at their range", "RANGE_BLIND", breaks="prefix"),
    _protocol("a gap refused by whoever is behind", "GAP_BEHIND", breaks="honest_refusal"),
    _protocol("future said by whoever is behind", "FUTURE_BEHIND", breaks="honest_refusal"),
    _protocol("a batch cut at resend", "BATCH_CUT", breaks="honest_refusal"),
    _protocol("an epoch fenced twice after a wipe", "WIPE", "EPOCH_TWICE", breaks="one_term_to_an_epoch"),
    _protocol("the same, expected tail not compared", "WIPE", "EPOCH_TWICE", "NO_CAS", breaks="no_duplicate"),
)

ELECTION = (
    _election("reply lost, false challenge, freeze, crash", "LOST=1", "FALSE=1", "FREEZE=1", "CRASH=1"),
    _election("reply lost, freeze, session and record lost", "LOST=1", "FREEZE=1", "EXPIRE=1", "DELETE=1"),
    _election("wiped, reply lost, false challenge, freeze", "WIPE=1", "LOST=1", "FALSE=1", "FREEZE=1"),
    _election("somebody leads and stays: reply lost, false challenge, freeze", "LOST=1", "FALSE=1", "FREEZE=1",
              live=True),
    _election("somebody leads and stays: crash, session and record lost", "CRASH=1", "EXPIRE=1", "DELETE=1",
              live=True),
    _election("somebody leads and stays: wiped, reply lost", "WIPE=1", "LOST=1", live=True),
    _election("somebody leads and stays: wiped, reply lost, false challenge, freeze", "WIPE=1", "LOST=1", "FALSE=1",
              "FREEZE=1", live=True, long=True),
    _election("somebody leads and stays: reply lost, false challenge, freeze, crash", "LOST=1", "FALSE=1", "FREEZE=1",
              "CRASH=1", live=True, long=True),
    _election("the version is read after the evidence", "VERSION_LATE", "FALSE=1", "CRASH=1",
              breaks="hits_whom_it_meant"),
    _election("the version is not compared", "NO_VERSION", "FALSE=1", breaks="hits_whom_it_meant"),
    _election("raised without a synced read, frozen challenger", "RAISE_UNSYNCED", "FALSE=1", "FREEZE=1",
              breaks="healthy_left_alone"),
    _election("raised without a synced read, two false challenges", "RAISE_UNSYNCED", "FALSE=2",
              breaks="healthy_left_alone"),
    _election("an epoch fenced twice after a wipe", "EPOCH_TWICE", "WIPE=1", "FALSE=1", breaks="fenced_once"),
    _election("own record without a term is left alone, reply lost", "OWN_IGNORED", "LOST=1", breaks="stays",
              live=True),
    _election("an idle leader looks at nothing", "NO_LOOK", "FALSE=1", "DELETE=1", breaks="stays", live=True),
)  # fmt: skip

ALL = PROTOCOL + ELECTION
