/*
 * Publishing and sequencing under a fenced log, written anew from the design and not from the code.
 *
 * Two instances, each of which leads up to NT times (a challenge may be false: nobody asks whether the one before is
 * dead); NP publishers with EV0 and EV1 changes; a log; a subscriber. Nothing is timely: a step that may happen may also
 * happen much later, or never.
 *
 * Messages are a soup: what was sent once may arrive at any time, any number of times, at anybody, in any order, or
 * never. So loss, delay, repetition, resending and reordering need no steps of their own. An append in flight outlives
 * its leader. An instance may crash (or freeze and be forgotten) between any two steps.
 *
 * The log only grows, so a receipt that is true when it leaves is true when it arrives: publishers take answers only
 * where the fault is how they take them.
 *
 * What must hold:
 *   no_lost_ack           a receipt names the place at which the log holds that change
 *   no_duplicate          no change is in the log twice
 *   publisher_order       numbers of one publisher follow each other in the log
 *   epochs_grow, one_term_to_an_epoch          along the log
 *   same_place            whoever sees a seq sees the same change there
 *   prefix                a subscriber has exactly log[1..position]: no gap, no repetition, no phantom
 *   honest_refusal        "gap" and "future" are true of the log; an honest publisher is never told "number reused"
 *
 * Deliberate faults, one or more of:
 *   NO_FENCE          the log does not compare epochs        NO_CAS            it does not compare the expected tail
 *   TAIL_FIRST        the tail is read before the fence      READ_AFTER        it is read some time after the fence
 *   ACK_FIRST         receipts leave before the append
 *   REPLY_UNTIED      a leader takes any reply of the log as that of its present append
 *   ANSWER_UNTIED     a publisher takes any answer as that to its oldest change
 *   NO_REBUILD        a new leader does not read from the log which numbers it holds
 *   UNKNOWN_STORED    an append without an answer counts as stored
 *   VISIBLE_FIRST     subscribers see entries before they are durable
 *   GAP_BEHIND        a gap is refused from memory           FUTURE_BEHIND     "future" is said from what was seen
 *   EPOCH_TWICE       the log lets an epoch that stands be fenced again (with WIPE: the coordinator gives it again)
 *   BATCH_CUT         a batch is sent again in pieces        RANGE_BLIND       frames are taken without a look at `after`
 *   WIPE              (no fault) the coordinator loses its data once: epochs begin at 0
 */

#ifndef NT
#define NT 2
#endif
#ifndef NP
#define NP 1
#endif
#ifndef EV0
#define EV0 3
#endif
#ifndef EV1
#define EV1 0
#endif
#define NL 2
#define EVENTS (EV0 + EV1)

/* a change is a byte: publisher * 4 + number (1, 2, 3) */
#define CHANGE(p, n) ((p) * 4 + (n))
#define OF(p) ((p) == 0 -> EV0 : EV1)

/* ---- the log: what stands at each seq (from 1), under which epoch and term, how large a batch begins there */
byte log_change[EVENTS + 2];
byte log_epoch[EVENTS + 2];
byte log_term[EVENTS + 2];
byte log_batch[EVENTS + 2];
byte tail;
byte fence_epoch;
byte fence_term;
byte stored[NP];            /* the last number of each publisher that the log holds */

byte epoch_given;           /* the coordinator's epoch */
bool wiped;

/* ---- instances. a term's id is its slot + 1; its append, if one is on its way, stands in that slot */
mtype = { idle, won, fenced, serving, waiting };
mtype mode[NL] = idle;
byte epoch[NL];
byte terms[NL];
byte expected[NL];          /* where the leader believes the tail to be */
byte known[NL * NP];        /* the last number of each publisher, as the leader believes */

mtype = { none, flying, taken, refused };
mtype ap_state[NL * NT] = none;
byte ap_epoch[NL * NT];
byte ap_expected[NL * NT];
byte ap_first[NL * NT];     /* the batch's first change ... */
byte ap_count[NL * NT];     /* ... and how many there are */

/* ---- publishers */
byte sealed[NP];            /* up to which number batches were made (and sent, from then on for ever) */
byte batch[NP * 4];         /* how many changes the batch that begins at this number has; 0: none begins here */
#ifdef ANSWER_UNTIED
byte answer[NP * 4];        /* the first seq that a receipt for the batch beginning here names; 0: none was sent */
byte acked[NP];             /* up to which number all are acknowledged */
#endif

/* ---- frames and the subscriber */
byte frame[EVENTS + 2];     /* the change shown at this seq by whoever showed it; 0: nobody has yet */
byte vouched;               /* the highest tail that a leader announced after its fence */
byte position;
byte effects;               /* how many changes the subscriber has applied */

/* for use within one step only */
hidden byte a, c, i, k, n, p, s;

/* always false: they put the promise's name into what Spin prints of a broken one */
hidden byte no_lost_ack, no_duplicate, publisher_order, epochs_grow, one_term_to_an_epoch;
hidden byte same_place, prefix, honest_refusal;
#define MUST(promise, holds) assert((holds) || promise)

#define ME (_pid - NL - 1)
#define SLOT(l) ((l) * NT + terms[l] - 1)
#ifdef NO_FENCE
#define FENCE_HOLDS(s) (true)
#elif defined(EPOCH_TWICE)
#define FENCE_HOLDS(s) (ap_epoch[s] == fence_epoch)
#else
#define FENCE_HOLDS(s) (ap_epoch[s] == fence_epoch && s + 1 == fence_term)
#endif
#ifdef NO_CAS
#define TAIL_HOLDS(s) (true)
#else
#define TAIL_HOLDS(s) (ap_expected[s] == tail)
#endif
#define MINE(l) (fence_epoch == epoch[l] && fence_term == SLOT(l) + 1)

inline announce(seq) {
    vouched = (seq > vouched -> seq : vouched)
}

/* Somebody shows a change at a seq. */
inline reveal(seq, change) {
    MUST(same_place, frame[seq] == 0 || frame[seq] == change);
    frame[seq] = change
}

/* A receipt leaves: the batch of p that begins at number n lies at seq. */
inline receipt(p, n, c, seq, i) {
    i = 0;
    do
    :: i < c -> MUST(no_lost_ack, seq + i <= tail && log_change[seq + i] == CHANGE(p, n + i)); i++
    :: else -> break
    od
#ifdef ANSWER_UNTIED
    ; answer[p * 4 + n] = seq
#endif
}

inline forget(l) {
    mode[l] = idle; epoch[l] = 0; expected[l] = 0;
    i = 0;
    do
    :: i < NP -> known[l * NP + i] = 0; i++
    :: else -> break
    od
}

inline read_log(l) {
    expected[l] = tail;
    i = 0;
    do
    :: i < NP ->
#ifndef NO_REBUILD
        known[l * NP + i] = stored[i];
#endif
        i++
    :: else -> break
    od
}

inline clear(s) {
    ap_state[s] = none; ap_epoch[s] = 0; ap_expected[s] = 0; ap_first[s] = 0; ap_count[s] = 0
}

inline serve(l) {
#ifndef TAIL_FIRST
    read_log(l);
#endif
    announce(expected[l]);
    mode[l] = serving
}

/* The append in slot s arrives at the log, in one step. */
inline land(s) {
    if
    :: FENCE_HOLDS(s) && TAIL_HOLDS(s) && tail + ap_count[s] <= EVENTS + 1 ->
        p = ap_first[s] / 4;
        i = 0;
        do
        :: i < ap_count[s] ->
            MUST(no_duplicate, ap_first[s] % 4 + i > stored[p]);
            MUST(publisher_order, ap_first[s] % 4 + i == stored[p] + 1);
            MUST(epochs_grow, tail == 0 || log_epoch[tail] <= ap_epoch[s]);
            MUST(one_term_to_an_epoch, tail == 0 || log_epoch[tail] != ap_epoch[s] || log_term[tail] == s + 1);
            tail++;
            log_change[tail] = ap_first[s] + i;
            log_epoch[tail] = ap_epoch[s];
            log_term[tail] = s + 1;
            log_batch[tail] = (i == 0 -> ap_count[s] : 0);
            stored[p] = ap_first[s] % 4 + i;
            i++
        :: else -> break
        od;
        ap_state[s] = taken
    :: else -> ap_state[s] = refused
    fi;
    if
    :: mode[s / NT] == waiting && SLOT(s / NT) == s -> skip
#ifdef REPLY_UNTIED
    :: mode[s / NT] != idle && terms[s / NT] > s % NT + 1 -> skip
#endif
    :: else -> clear(s)                                         /* nobody waits for this reply */
    fi
}

/* The leader has the log's word that the append in slot s is durable: receipts, then visible. */
inline stored_now(l, s) {
    p = ap_first[s] / 4;
    n = ap_first[s] % 4;
#ifndef ACK_FIRST
    receipt(p, n, ap_count[s], expected[l] + 1, i);
#endif
    i = 0;
    do
    :: i < ap_count[s] -> reveal(expected[l] + 1 + i, ap_first[s] + i); i++
    :: else -> break
    od;
    expected[l] = expected[l] + ap_count[s];
    known[l * NP + p] = n + ap_count[s] - 1;
    announce(expected[l]);
    mode[l] = serving
}

/* A batch of p that begins at number n and holds c changes arrives at the leader l. */
inline judge(l, p, n, c) {
    if
    :: n == known[l * NP + p] + 1 ->
        s = SLOT(l);
        ap_state[s] = flying; ap_epoch[s] = epoch[l]; ap_expected[s] = expected[l];
        ap_first[s] = CHANGE(p, n); ap_count[s] = c;
        mode[l] = waiting;
#ifdef ACK_FIRST
        receipt(p, n, c, expected[l] + 1, i);
#endif
#ifdef VISIBLE_FIRST
        i = 0;
        do
        :: i < c -> reveal(expected[l] + 1 + i, CHANGE(p, n + i)); i++
        :: else -> break
        od;
        announce(expected[l] + c)
#endif
    :: n <= known[l * NP + p] ->
        /* known: the log has it, and says where; other bytes under a number that is held are refused */
        k = 1;
        do
        :: k <= tail && log_change[k] != CHANGE(p, n) -> k++
        :: else -> break
        od;
        MUST(no_lost_ack, k <= tail);                           /* it was known, so it is there */
        MUST(honest_refusal, log_batch[k] == c);                /* else "number reused" is said to an honest publisher */
        receipt(p, n, c, k, i)
    :: else ->
#ifdef GAP_BEHIND
        MUST(honest_refusal, n > stored[p] + 1)
#else
        if
        :: MINE(l) && stored[p] == known[l * NP + p] -> MUST(honest_refusal, n > stored[p] + 1)
        :: else -> forget(l)
        fi
#endif
    fi
}

active [NL] proctype instance() {
end:
    do
    :: atomic { mode[_pid] == idle && terms[_pid] < NT ->       /* a take, or a challenge that may be false */
        epoch_given++; epoch[_pid] = epoch_given; terms[_pid]++; mode[_pid] = won;
#ifdef TAIL_FIRST
        read_log(_pid)
#endif
       }
    :: atomic { mode[_pid] == won ->
        if
#ifdef EPOCH_TWICE
        :: epoch[_pid] >= fence_epoch ->
#else
        :: epoch[_pid] > fence_epoch ->
#endif
            fence_epoch = epoch[_pid]; fence_term = SLOT(_pid) + 1;
#ifdef READ_AFTER
            mode[_pid] = fenced
#else
            serve(_pid)
#endif
        :: else ->
            if
            :: epoch_given < fence_epoch -> epoch_given = fence_epoch   /* the coordinator is behind: raise it */
            :: else -> skip                                             /* overtaken: follow */
            fi;
            forget(_pid)
        fi }
#ifdef READ_AFTER
    :: atomic { mode[_pid] == fenced -> serve(_pid) }
#endif
    :: atomic { mode[_pid] == serving ->                        /* any batch that was ever sent */
        p = 0; n = 1;
        do
        :: p < NP - 1 -> p++
        :: n < OF(p) -> n++
        :: break
        od;
        if
        :: batch[p * 4 + n] > 0 -> c = batch[p * 4 + n]; judge(_pid, p, n, c)
#ifdef BATCH_CUT
        :: batch[p * 4 + n] == 2 -> judge(_pid, p, n, 1)
        :: n > 1 && batch[p * 4 + n - 1] == 2 -> judge(_pid, p, n, 1)
#endif
        :: else -> skip
        fi }
    :: atomic { mode[_pid] == waiting && ap_state[SLOT(_pid)] == taken ->
        s = SLOT(_pid); stored_now(_pid, s); clear(s) }
    :: atomic { mode[_pid] == waiting && ap_state[SLOT(_pid)] == refused ->
        s = SLOT(_pid); clear(s); forget(_pid) }
#ifdef REPLY_UNTIED
    :: atomic { mode[_pid] == waiting && terms[_pid] > 1 && ap_state[SLOT(_pid) - 1] == taken ->
        s = SLOT(_pid); stored_now(_pid, s); s = s - 1; clear(s) }
#endif
#ifdef UNKNOWN_STORED
    :: atomic { mode[_pid] == waiting && ap_state[SLOT(_pid)] == flying -> s = SLOT(_pid); stored_now(_pid, s) }
#endif
    :: atomic { mode[_pid] != idle ->                           /* crashes, or gives up an append of unknown outcome */
        s = SLOT(_pid);
#ifndef REPLY_UNTIED
        if
        :: mode[_pid] == waiting && ap_state[s] != flying -> clear(s)
        :: else -> skip
        fi;
#endif
        forget(_pid) }
    od
}

active proctype store() {
end:
    do
    :: atomic { s = 0;
        do
        :: s < NL * NT - 1 -> s++
        :: break
        od;
        if
        :: ap_state[s] == flying -> land(s)
        :: else -> skip
        fi }
#ifdef WIPE
    :: atomic { !wiped && epoch_given > 0 -> wiped = true; epoch_given = 0 }
#endif
    od
}

active [NP] proctype publisher() {
end:
    do
    :: atomic { sealed[ME] < OF(ME) -> sealed[ME] = sealed[ME] + 1; batch[ME * 4 + sealed[ME]] = 1 }
    :: atomic { sealed[ME] + 1 < OF(ME) -> batch[ME * 4 + sealed[ME] + 1] = 2; sealed[ME] = sealed[ME] + 2 }
#ifdef ANSWER_UNTIED
    :: atomic { acked[ME] < sealed[ME] ->       /* any answer that was ever sent counts for the oldest change */
        p = ME; n = acked[p] + 1; k = 1;
        do
        :: k < n -> k++
        :: break
        od;
        if
        :: answer[p * 4 + k] > 0 ->
            MUST(no_lost_ack, log_change[answer[p * 4 + k]] == CHANGE(p, n));
            acked[p] = acked[p] + batch[p * 4 + n]
        :: else -> skip
        fi }
#endif
    od
}

active proctype subscriber() {
end:
    do
    :: atomic { position < EVENTS && frame[position + 1] > 0 ->             /* a frame that goes on where I stand */
        position++; effects++;
        MUST(prefix, effects == position && position <= tail && log_change[position] == frame[position]) }
    :: atomic { position < vouched && frame[position + 1] == 0 ->          /* resumed: an instance reads the log */
        MUST(prefix, position + 1 <= tail);
        reveal(position + 1, log_change[position + 1]) }
#ifdef RANGE_BLIND
    :: atomic { position + 1 < EVENTS && frame[position + 2] > 0 ->         /* one that begins beyond */
        position = position + 2; effects++;
        MUST(prefix, effects == position && position <= tail && log_change[position] == frame[position]) }
#endif
#ifdef FUTURE_BEHIND
    :: atomic { a = 0;                      /* an instance that has seen the tail up to a says "future" to me */
        do
        :: a < vouched -> a++
        :: break
        od;
        MUST(honest_refusal, position <= a || position > tail) }
#endif
    od
}
