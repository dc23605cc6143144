/*
 * The election of one feed's leader, written anew from the design and not from the code.
 *
 * Two instances, a coordinator (epoch, version, leader record of a session) and the log's fence. An instance reads the
 * coordinator, decides, writes once with the version that it read, fences the log, leads, looks at the log. Between any
 * two of these steps anything may happen to the others: so each view may be old, and a candidate may be late by any time.
 *
 * What goes wrong, each so often as its budget says (-DNAME=n, none if not given):
 *   LOST     a write is done but its reply is lost            FALSE    a living leader is challenged
 *   FREEZE   an instance stops for a while, wherever it is    CRASH    it dies, and another process starts in its place
 *   EXPIRE   its session ends, it gets a new one              DELETE   somebody deletes the leader record
 *   WIPE     the coordinator loses all: epochs begin at 0
 *
 * What must hold:
 *   fenced_once           an epoch is fenced at most once
 *   given_once            an epoch is given at most once while the coordinator keeps its data
 *   hits_whom_it_meant    a challenge replaces the record of the term that was seen to die, never its successor's
 *   healthy_left_alone    whoever leads and is not frozen loses its record to nobody, but to a FALSE challenge
 *   change_was_caused     the leader changes no more often than something went wrong
 *   stays (LIVE)          once nothing goes wrong any more, somebody leads, by record and by fence, and goes on leading
 *
 * Deliberate faults:
 *   VERSION_LATE      the version of a challenge is read after the evidence
 *   NO_VERSION        takes and challenges do not compare the version
 *   OWN_IGNORED       an instance does nothing about a record of its own session without a running term
 *   RAISE_UNSYNCED    a refused fence raises the coordinator and contends, without a synced read first
 *   EPOCH_TWICE       the log lets the epoch that stands be fenced again
 *   NO_LOOK           a leader looks neither at the log nor at the coordinator
 */

#ifndef LOST
#define LOST 0
#endif
#ifndef FALSE
#define FALSE 0
#endif
#ifndef FREEZE
#define FREEZE 0
#endif
#ifndef CRASH
#define CRASH 0
#endif
#ifndef EXPIRE
#define EXPIRE 0
#endif
#ifndef DELETE
#define DELETE 0
#endif
#ifndef WIPE
#define WIPE 0
#endif

#define NL 2
#define NOBODY 2
#define EPOCHS 12

/* ---- the coordinator. a session is a byte; a record's owner is an instance, or NOBODY */
byte co_epoch;
byte co_version;
byte co_owner = NOBODY;
byte co_held;               /* the epoch that the record names */
byte co_session;
byte sessions = NL;         /* how many were given */

/* ---- the log */
byte fence_epoch;
byte fence_owner = NOBODY;

/* ---- instances: what each read last, and what it makes of it */
mtype = { following, won, leading };
mtype mode[NL] = following;
byte mine[NL];              /* the epoch that I won, or lead */
byte session[NL];
bool frozen[NL];
byte v_epoch[NL];
byte v_version[NL];
byte v_owner[NL] = NOBODY;
byte v_held[NL];
byte v_session[NL];
bool fresh[NL];             /* whether this view has not been decided upon yet */
byte discard[NL];           /* the epoch of a record of mine that must go instead of being replaced */
byte late[NL];              /* the epoch whose fence was refused: the synced read decides */

/* ---- what went wrong, and what came of it */
byte lost = LOST;
byte falsely = FALSE;
byte freezes = FREEZE;
byte crashes = CRASH;
byte expiries = EXPIRE;
byte deletions = DELETE;
byte wipes = WIPE;
byte causes = 1;            /* the first leader needs none */
byte changes;
bool fenced[EPOCHS];
bool given[EPOCHS];

hidden byte deceived;       /* within one step: it holds a living leader for dead */
hidden byte fenced_once, given_once, hits_whom_it_meant, healthy_left_alone, change_was_caused;
#define MUST(promise, holds) assert((holds) || promise)

#define ME _pid
#define OTHER (1 - _pid)
#define GONE(l) (v_owner[l] != NOBODY && v_session[l] != session[v_owner[l]])
#define LEADS(l) \
    (mode[l] == leading && fence_epoch == mine[l] && fence_owner == l && co_owner == l && co_held == mine[l])

inline read_view(l) {
    v_epoch[l] = co_epoch; v_version[l] = co_version;
    v_owner[l] = co_owner; v_held[l] = co_held; v_session[l] = co_session
}

inline set_epoch(e) {
    co_epoch = e; co_version++
}

inline end_term(l) {
    mode[l] = following; mine[l] = 0
}

/* One compare-and-set on the version that l read; `meant` is the epoch of the record to be replaced, 0: there is none. */
inline win(l, meant) {
#ifdef VERSION_LATE
    if
    :: meant > 0 -> v_version[l] = co_version; v_epoch[l] = co_epoch
    :: else -> skip
    fi;
#endif
    if
#ifdef NO_VERSION
    :: true ->
#else
    :: co_version == v_version[l] && (meant > 0 || co_owner == NOBODY) ->
#endif
        MUST(hits_whom_it_meant, co_owner == NOBODY || meant == co_held);
        MUST(healthy_left_alone, deceived || co_owner == NOBODY || co_owner == l || frozen[co_owner] || !LEADS(co_owner));
        set_epoch(v_epoch[l] + 1);
        MUST(given_once, !given[co_epoch]);
        given[co_epoch] = true;
        co_owner = l; co_held = co_epoch; co_session = session[l];
        if
        :: lost > 0 -> lost--; causes++                         /* the reply is lost: the next read will tell */
        :: end_term(l); mine[l] = co_epoch; mode[l] = won       /* a term that ran until now ends here */
        fi
    :: else -> skip                                             /* that term is over already */
    fi
}

inline contend(l, meant) {
    if
    :: fence_epoch > v_epoch[l] ->                              /* the coordinator is behind the log */
        if
        :: co_version == v_version[l] -> set_epoch(fence_epoch)
        :: else -> skip
        fi
    :: else -> win(l, meant)
    fi
}

inline decide_leading(l) {
    if
    :: fence_owner != l || fence_epoch != mine[l] -> end_term(l)                            /* fenced */
    :: else ->
        if
        :: v_owner[l] == OTHER && v_held[l] > mine[l] -> end_term(l)                        /* overtaken */
        :: v_owner[l] == OTHER && v_held[l] <= mine[l] -> contend(l, v_held[l])             /* it was wiped */
        :: v_owner[l] == NOBODY -> contend(l, 0)
        :: v_owner[l] == l && (v_held[l] != mine[l] || v_session[l] != session[l]) -> contend(l, v_held[l])
        :: else -> skip
        fi
    fi
}

inline decide_following(l) {
    if
    :: v_owner[l] == l && v_session[l] == session[l] ->
        if
        :: discard[l] == v_held[l] ->
            if
            :: co_owner == l && co_held == v_held[l] && co_session == session[l] ->
                co_owner = NOBODY; co_held = 0; co_session = 0
            :: else -> skip
            fi
        :: else ->
#ifdef OWN_IGNORED
            skip
#else
            contend(l, v_held[l])
#endif
        fi
    :: v_owner[l] == NOBODY -> contend(l, 0)
    :: GONE(l) -> contend(l, v_held[l])                         /* its URL refuses, or another process answers there */
    :: v_owner[l] == OTHER && !GONE(l) && frozen[OTHER] ->
        contend(l, v_held[l])                                   /* silent: record, epoch and version were read as one */
    :: v_owner[l] == OTHER && !GONE(l) && !frozen[OTHER] && falsely > 0 ->
        falsely--; causes++; deceived = true; contend(l, v_held[l]); deceived = false
    :: v_owner[l] == OTHER && !GONE(l) && !frozen[OTHER] -> skip
    fi
}

inline try_fence(l) {
    if
#ifdef EPOCH_TWICE
    :: mine[l] >= fence_epoch ->
#else
    :: mine[l] > fence_epoch ->
#endif
        MUST(fenced_once, !fenced[mine[l]]);
        fenced[mine[l]] = true;
        fence_epoch = mine[l]; fence_owner = l; mode[l] = leading; changes++;
        MUST(change_was_caused, changes <= causes)
    :: else ->
#ifdef RAISE_UNSYNCED
        if
        :: co_epoch < fence_epoch -> set_epoch(fence_epoch)
        :: else -> skip
        fi;
        end_term(l); read_view(l); contend(l, v_held[l])
#else
        late[l] = mine[l]; fresh[l] = false                     /* a view from before the refusal tells nothing */
#endif
    fi
}

/* The log refused my fence, and this view was read after that. */
inline settle_refusal(l) {
    late[l] = 0;
    if
    :: v_epoch[l] >= fence_epoch -> discard[l] = mine[l]; end_term(l)       /* overtaken: follow */
    :: else ->
        if
        :: co_version == v_version[l] -> set_epoch(fence_epoch)
        :: else -> skip
        fi;
        end_term(l)                                             /* then an ordinary candidacy */
    fi
}

active [NL] proctype instance() {
    session[ME] = ME + 1;
    do
    :: !frozen[ME] && (mode[ME] != won || late[ME] > 0) && !fresh[ME] -> atomic { read_view(ME); fresh[ME] = true }
    :: atomic { !frozen[ME] && fresh[ME] ->
        fresh[ME] = false;
        if
        :: late[ME] > 0 -> settle_refusal(ME)
        :: else ->
            if
            :: mode[ME] == leading ->
#ifdef NO_LOOK
                skip
#else
                decide_leading(ME)
#endif
            :: mode[ME] == following ->
                decide_following(ME)
            :: else -> skip
            fi
        fi }
    :: atomic { !frozen[ME] && mode[ME] == won && late[ME] == 0 -> try_fence(ME) }
    od
}

/* Whoever loses its session, or dies, comes back under a new one. */
inline new_session(l) {
    sessions++; session[l] = sessions
}

inline drop_record() {
    co_owner = NOBODY; co_held = 0; co_session = 0
}

active proctype nemesis() {
    byte l;
    do
    :: atomic { freezes > 0 && !frozen[0] && !frozen[1] ->
        freezes--; causes++;
        if
        :: frozen[0] = true
        :: frozen[1] = true
        fi }
    :: atomic { frozen[0] -> frozen[0] = false }
    :: atomic { frozen[1] -> frozen[1] = false }
    :: atomic { crashes > 0 ->
        crashes--; causes++;
        if
        :: l = 0
        :: l = 1
        fi;
        new_session(l); end_term(l); frozen[l] = false; fresh[l] = false; discard[l] = 0; late[l] = 0; l = 0 }
    :: atomic { co_owner != NOBODY && co_session != session[co_owner] -> drop_record() }    /* a dead one's times out */
    :: atomic { expiries > 0 ->
        expiries--; causes++;
        if
        :: l = 0
        :: l = 1
        fi;
        if
        :: co_owner == l && co_session == session[l] -> drop_record()
        :: else -> skip
        fi;
        new_session(l); l = 0 }
    :: atomic { deletions > 0 && co_owner != NOBODY -> deletions--; causes++; drop_record() }
    :: atomic { wipes > 0 ->
        wipes--; causes++;
        set_epoch(0); drop_record();
        new_session(0); new_session(1);
        do
        :: l < EPOCHS -> given[l] = false; l++
        :: else -> l = 0; break
        od }
    :: !frozen[0] && !frozen[1] -> break                        /* nothing goes wrong any more */
    od
}

#ifdef LIVE
ltl stays { <> [] (LEADS(0) || LEADS(1)) }
#endif
