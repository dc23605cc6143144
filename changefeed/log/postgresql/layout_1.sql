-- Layout 1 of the log in PostgreSQL: all of it in the schema "changefeed" of one database.
--
-- heads      one row per feed: fence, tail, floor, counters. It is the feed's only lock: every write locks it first and
--            compares what it finds, then writes in *later* statements, whose snapshots are younger than the wait.
-- entries    one row per entry, keyed by its last seq
-- objects    the snapshot: one row per object (resource, id), up to the head's `folded`
-- publishers, epochs, settings: as docs/internals/architecture.md says of every store
-- renewals   when the fence's holder was last alive: beside the head, so that saying so waits for no append
--
-- Functions are VOLATILE and meant for READ COMMITTED, one call per transaction: no lock is ever held while the server
-- waits for a client.

CREATE TABLE changefeed.layout (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    version integer NOT NULL
);

CREATE TABLE changefeed.feeds (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    feed text NOT NULL UNIQUE,
    lineage text NOT NULL,
    created bigint NOT NULL
);

CREATE TABLE changefeed.heads (
    feed_id integer PRIMARY KEY REFERENCES changefeed.feeds,
    epoch bigint NOT NULL DEFAULT 0,
    term text NOT NULL,
    instance text NOT NULL DEFAULT '',
    process text NOT NULL DEFAULT '',
    pid bigint NOT NULL DEFAULT 0,
    pid_started bigint NOT NULL DEFAULT 0,
    url text NOT NULL DEFAULT '',
    coordinator text NOT NULL DEFAULT '',
    renewed bigint NOT NULL DEFAULT 0,
    format integer NOT NULL,
    tail_seq bigint NOT NULL DEFAULT 0,
    tail_epoch bigint NOT NULL DEFAULT 0,
    tail_term text NOT NULL,
    tail_digest bytea NOT NULL,
    tail_time bigint NOT NULL DEFAULT 0,
    floor_seq bigint NOT NULL DEFAULT 0,
    floor_epoch bigint NOT NULL DEFAULT 0,
    floor_term text NOT NULL,
    floor_digest bytea NOT NULL,
    floor_time bigint NOT NULL DEFAULT 0,
    incarnations bigint NOT NULL DEFAULT 0,
    settings_version bigint NOT NULL DEFAULT 0,
    bytes bigint NOT NULL DEFAULT 0,
    -- A transaction of the outbox that is larger than a group and of which a part has been moved: it goes on first.
    outbox_open bigint,
    outbox_part integer NOT NULL DEFAULT 0,
    -- Up to which seq the entries are in changefeed.objects. NULL: what stands there is nobody's.
    folded bigint,
    versioned boolean NOT NULL DEFAULT false
    -- The row is written by every append: room on its page keeps the update there, and its page's dead rows go at once.
) WITH (fillfactor = 10, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);

CREATE TABLE changefeed.renewals (
    feed_id integer PRIMARY KEY REFERENCES changefeed.feeds,
    epoch bigint NOT NULL DEFAULT 0,
    term text NOT NULL DEFAULT '',
    renewed bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 10);

CREATE TABLE changefeed.entries (
    feed_id integer NOT NULL,
    last_seq bigint NOT NULL,
    seq bigint NOT NULL,
    epoch bigint NOT NULL,
    term text NOT NULL,
    time bigint NOT NULL,
    publisher text NOT NULL,
    incarnation bigint NOT NULL,
    after bigint NOT NULL,
    number bigint NOT NULL,
    sizes bytea NOT NULL,
    batch_digest bytea NOT NULL,
    digest bytea NOT NULL,
    payload bytea NOT NULL,
    PRIMARY KEY (feed_id, last_seq)
);
-- Batches are what they are: trying to compress them costs more than it saves.
ALTER TABLE changefeed.entries ALTER COLUMN payload SET STORAGE EXTERNAL;
CREATE UNIQUE INDEX entries_by_number ON changefeed.entries (feed_id, publisher, incarnation, number);

CREATE TABLE changefeed.publishers (
    feed_id integer NOT NULL,
    publisher text NOT NULL,
    incarnation bigint NOT NULL,
    last_number bigint NOT NULL,
    last_seq bigint NOT NULL,
    named boolean NOT NULL,
    opened bigint NOT NULL,
    PRIMARY KEY (feed_id, publisher)
) WITH (fillfactor = 50);

CREATE TABLE changefeed.epochs (
    feed_id integer NOT NULL,
    epoch bigint NOT NULL,
    term text NOT NULL,
    first bigint NOT NULL,
    time bigint NOT NULL,
    instance text NOT NULL,
    why text NOT NULL,
    PRIMARY KEY (feed_id, epoch)
);

CREATE TABLE changefeed.settings (
    feed_id integer PRIMARY KEY REFERENCES changefeed.feeds,
    version bigint NOT NULL DEFAULT 0,
    value text NOT NULL
);

-- The latest event of each object. Keys are compared by their UTF-8 bytes. id is bytea: an id may hold a zero, which
-- text cannot. payload NULL: a tombstone. No index but the key, and room on each page: so an update stays on its page.
CREATE TABLE changefeed.objects (
    feed_id integer NOT NULL,
    resource text COLLATE "C" NOT NULL,
    id bytea NOT NULL,
    seq bigint NOT NULL,
    epoch bigint NOT NULL,
    term text NOT NULL,
    time bigint NOT NULL,
    publisher text NOT NULL,
    version bigint,
    payload bytea,
    PRIMARY KEY (feed_id, resource, id)
) WITH (fillfactor = 80);
ALTER TABLE changefeed.objects ALTER COLUMN payload SET STORAGE EXTERNAL;

-- Which rows may be tombstones, by seq, for trim: some have been replaced since.
CREATE TABLE changefeed.tombstones (
    feed_id integer NOT NULL,
    seq bigint NOT NULL,
    resource text COLLATE "C" NOT NULL,
    id bytea NOT NULL,
    PRIMARY KEY (feed_id, seq, resource, id)
);

-- One consistent look: a single statement, hence a single snapshot.
CREATE TYPE changefeed.look AS (
    lineage text,
    head changefeed.heads,
    renewed bigint,
    epochs bigint[], terms text[], firsts bigint[], times bigint[], instances text[], whys text[]
);

CREATE FUNCTION changefeed.look(p_feed integer) RETURNS SETOF changefeed.look LANGUAGE sql STABLE AS $$
    SELECT f.lineage, h,
           CASE WHEN (r.epoch, r.term) = (h.epoch, h.term) THEN greatest(r.renewed, h.renewed) ELSE h.renewed END,
           e.epochs, e.terms, e.firsts, e.times, e.instances, e.whys
      FROM changefeed.feeds f
      JOIN changefeed.heads h ON h.feed_id = f.id
      JOIN changefeed.renewals r ON r.feed_id = f.id
     CROSS JOIN LATERAL (
           SELECT array_agg(epoch ORDER BY epoch) AS epochs, array_agg(term ORDER BY epoch) AS terms,
                  array_agg(first ORDER BY epoch) AS firsts, array_agg(time ORDER BY epoch) AS times,
                  array_agg(instance ORDER BY epoch) AS instances, array_agg(why ORDER BY epoch) AS whys
             FROM changefeed.epochs WHERE feed_id = p_feed) e
     WHERE f.id = p_feed
$$;

CREATE FUNCTION changefeed.renew(p_feed integer, p_epoch bigint, p_term text, p_wall bigint) RETURNS void
LANGUAGE sql AS $$
    UPDATE changefeed.renewals r SET epoch = p_epoch, term = p_term, renewed = p_wall
      FROM changefeed.heads h
     WHERE r.feed_id = p_feed AND h.feed_id = p_feed AND (h.epoch, h.term) = (p_epoch, p_term)
$$;

CREATE FUNCTION changefeed.create_feed(p_feed text, p_lineage text, p_created bigint, p_no_term text,
                                       p_start bytea, p_format integer, p_settings text) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    v_id integer;
BEGIN
    INSERT INTO changefeed.feeds (feed, lineage, created) VALUES (p_feed, p_lineage, p_created)
        ON CONFLICT (feed) DO NOTHING RETURNING id INTO v_id;
    IF v_id IS NULL THEN
        RETURN;
    END IF;
    INSERT INTO changefeed.heads (feed_id, term, format, tail_term, tail_digest, floor_term, floor_digest)
        VALUES (v_id, p_no_term, p_format, p_no_term, p_start, p_no_term, p_start);
    INSERT INTO changefeed.renewals (feed_id) VALUES (v_id);
    INSERT INTO changefeed.settings (feed_id, value) VALUES (v_id, p_settings);
END $$;

-- Which of two fences: refused, or standing now (with the look that was taken under the lock).
CREATE FUNCTION changefeed.fence(p_feed integer, p_epoch bigint, p_term text, p_instance text, p_process text,
                                 p_pid bigint, p_pid_started bigint, p_url text, p_coordinator text, p_renewed bigint,
                                 p_format integer, p_why text, p_time bigint, p_format_known integer,
                                 p_epochs_kept integer, OUT outcome text, OUT look changefeed.look)
LANGUAGE plpgsql SET lock_timeout = '200ms' AS $$
DECLARE
    v_head changefeed.heads;
BEGIN
    SELECT * INTO STRICT v_head FROM changefeed.heads WHERE feed_id = p_feed FOR UPDATE;
    outcome := 'refused';
    IF v_head.format > p_format_known THEN
        outcome := 'format';
    ELSIF p_epoch > v_head.epoch THEN
        outcome := 'fenced';
        UPDATE changefeed.heads SET epoch = p_epoch, term = p_term, instance = p_instance, process = p_process,
               pid = p_pid, pid_started = p_pid_started, url = p_url, coordinator = p_coordinator, renewed = p_renewed,
               format = p_format
         WHERE feed_id = p_feed;
        INSERT INTO changefeed.epochs (feed_id, epoch, term, first, time, instance, why)
            VALUES (p_feed, p_epoch, p_term, v_head.tail_seq + 1, p_time, p_instance, p_why);
        -- Bound the history: a term that stored nothing names no position, so the oldest of them may go.
        DELETE FROM changefeed.epochs WHERE feed_id = p_feed AND epoch IN (
            SELECT o.epoch FROM (SELECT e.epoch, e.first, lead(e.first) OVER (ORDER BY e.epoch) AS following
                                   FROM changefeed.epochs e WHERE e.feed_id = p_feed) o
             WHERE o.first = o.following ORDER BY o.epoch
             LIMIT greatest(0, (SELECT count(*) FROM changefeed.epochs WHERE feed_id = p_feed) - p_epochs_kept));
    END IF;
    SELECT * INTO STRICT look FROM changefeed.look(p_feed);
END $$;

-- The head, locked; raises nothing: `outcome` says what the caller may do.
CREATE FUNCTION changefeed.locked(p_feed integer, p_epoch bigint, p_term text, OUT outcome text,
                                  OUT head changefeed.heads)
LANGUAGE plpgsql AS $$
BEGIN
    SELECT h.* INTO STRICT head FROM changefeed.heads h WHERE h.feed_id = p_feed FOR UPDATE;
    -- Epoch 0 is that of a log which nobody has fenced: nobody may write under it.
    outcome := CASE WHEN p_epoch >= 1 AND (head.epoch, head.term) = (p_epoch, p_term) THEN 'stored' ELSE 'fenced' END;
END $$;

CREATE FUNCTION changefeed.append(p_feed integer, p_epoch bigint, p_term text, p_tail bigint,
                                  p_last_seqs bigint[], p_seqs bigint[], p_times bigint[], p_publishers text[],
                                  p_incarnations bigint[], p_afters bigint[], p_numbers bigint[], p_sizes bytea[],
                                  p_batch_digests bytea[], p_digests bytea[], p_payloads bytea[], p_bytes bigint,
                                  k_publishers text[], k_incarnations bigint[], k_last_numbers bigint[],
                                  k_last_seqs bigint[], p_moved bigint[], p_open bigint, p_part integer,
                                  OUT outcome text, OUT head changefeed.heads)
LANGUAGE plpgsql AS $$
DECLARE
    v_locked record;
    v_count integer := cardinality(p_last_seqs);
    v_moved bigint;
BEGIN
    SELECT * INTO STRICT v_locked FROM changefeed.locked(p_feed, p_epoch, p_term);
    outcome := v_locked.outcome;
    head := v_locked.head;
    IF outcome = 'fenced' THEN
        RETURN;
    ELSIF head.tail_seq <> p_tail THEN
        outcome := 'tail-moved';
        RETURN;
    ELSIF head.tail_time > p_times[1] THEN
        outcome := 'time';
        RETURN;
    END IF;
    INSERT INTO changefeed.entries (feed_id, last_seq, seq, epoch, term, time, publisher, incarnation, after, number,
                                    sizes, batch_digest, digest, payload)
        SELECT p_feed, n.last_seq, n.seq, p_epoch, p_term, n.time, n.publisher, n.incarnation, n.after, n.number,
               n.sizes, n.batch_digest, n.digest, n.payload
          FROM unnest(p_last_seqs, p_seqs, p_times, p_publishers, p_incarnations, p_afters, p_numbers, p_sizes,
                      p_batch_digests, p_digests, p_payloads)
            AS n (last_seq, seq, time, publisher, incarnation, after, number, sizes, batch_digest, digest, payload);
    -- One row per publisher and incarnation, in the order of their last entries; a loop, since one statement may not
    -- touch a row twice. A missing row was dropped while its publisher lived; it may be a named one, which must not
    -- lose its number.
    FOR i IN 1 .. cardinality(k_publishers) LOOP
        INSERT INTO changefeed.publishers AS p (feed_id, publisher, incarnation, last_number, last_seq, named, opened)
            VALUES (p_feed, k_publishers[i], k_incarnations[i], k_last_numbers[i], k_last_seqs[i], true, p_tail)
            ON CONFLICT (feed_id, publisher) DO UPDATE SET last_seq = excluded.last_seq,
                last_number = CASE WHEN excluded.incarnation >= p.incarnation THEN excluded.last_number
                                   ELSE p.last_number END,
                incarnation = greatest(p.incarnation, excluded.incarnation);
    END LOOP;
    UPDATE changefeed.heads SET tail_seq = p_last_seqs[v_count], tail_epoch = p_epoch, tail_term = p_term,
           tail_digest = p_digests[v_count], tail_time = p_times[v_count], bytes = bytes + p_bytes
     WHERE feed_id = p_feed;
    -- What the entries hold of the outbox leaves it: exactly these rows, or nothing of all this happens.
    IF p_moved IS NOT NULL THEN
        DELETE FROM changefeed.outbox WHERE feed_id = p_feed AND id = ANY (p_moved);
        GET DIAGNOSTICS v_moved = ROW_COUNT;
        IF v_moved <> cardinality(p_moved) THEN
            RAISE EXCEPTION 'rows of the outbox were taken by somebody else: % of %', v_moved, cardinality(p_moved)
                USING ERRCODE = 'CF001';
        END IF;
        UPDATE changefeed.heads SET outbox_open = p_open, outbox_part = p_part
         WHERE feed_id = p_feed AND (outbox_open, outbox_part) IS DISTINCT FROM (p_open, p_part);
    END IF;
END $$;

CREATE FUNCTION changefeed.open_publisher(p_feed integer, p_epoch bigint, p_term text, p_publisher text, p_named boolean,
                                          p_max bigint, OUT outcome text, OUT head changefeed.heads,
                                          OUT incarnation bigint, OUT last_number bigint, OUT last_seq bigint,
                                          OUT named boolean)
LANGUAGE plpgsql AS $$
DECLARE
    v_locked record;
    v_known changefeed.publishers;
    v_count bigint;
BEGIN
    SELECT * INTO STRICT v_locked FROM changefeed.locked(p_feed, p_epoch, p_term);
    outcome := v_locked.outcome;
    head := v_locked.head;
    IF outcome = 'fenced' THEN
        RETURN;
    END IF;
    SELECT p.* INTO v_known FROM changefeed.publishers p WHERE p.feed_id = p_feed AND p.publisher = p_publisher;
    IF v_known.publisher IS NOT NULL AND p_named AND v_known.named THEN
        UPDATE changefeed.publishers p SET opened = head.tail_seq
         WHERE p.feed_id = p_feed AND p.publisher = p_publisher;
        incarnation := v_known.incarnation;
        last_number := v_known.last_number;
        last_seq := v_known.last_seq;
        named := v_known.named;
        RETURN;
    END IF;
    IF v_known.publisher IS NULL THEN
        SELECT count(*) INTO v_count FROM changefeed.publishers p WHERE p.feed_id = p_feed;
        IF v_count >= p_max THEN
            DELETE FROM changefeed.publishers p WHERE p.feed_id = p_feed AND p.publisher IN (
                SELECT o.publisher FROM changefeed.publishers o
                 WHERE o.feed_id = p_feed AND o.last_seq <= head.floor_seq
                 ORDER BY o.opened, o.incarnation LIMIT greatest(1, p_max / 100));
            IF NOT FOUND THEN
                outcome := 'too-many-publishers';
                last_number := v_count;
                RETURN;
            END IF;
        END IF;
    END IF;
    UPDATE changefeed.heads h SET incarnations = h.incarnations + 1 WHERE h.feed_id = p_feed
        RETURNING h.incarnations INTO incarnation;
    last_number := 0;
    last_seq := coalesce(v_known.last_seq, 0);
    named := p_named;
    INSERT INTO changefeed.publishers AS p (feed_id, publisher, incarnation, last_number, last_seq, named, opened)
        VALUES (p_feed, p_publisher, open_publisher.incarnation, 0, open_publisher.last_seq, p_named, head.tail_seq)
        ON CONFLICT ON CONSTRAINT publishers_pkey DO UPDATE SET incarnation = excluded.incarnation, last_number = 0,
            named = excluded.named, opened = excluded.opened;
END $$;

-- Drops entries up to a seq, but no more than one transaction should: appends and fences wait for it.
CREATE FUNCTION changefeed.trim_some(p_feed integer, p_epoch bigint, p_term text, p_up_to bigint, p_entries integer,
                                     p_bytes bigint, p_overhead bigint, OUT outcome text, OUT head changefeed.heads,
                                     OUT floor bigint, OUT more boolean)
LANGUAGE plpgsql AS $$
DECLARE
    v_locked record;
    v_last bigint;
    v_dropped bigint;
    v_freed bigint;
BEGIN
    SELECT * INTO STRICT v_locked FROM changefeed.locked(p_feed, p_epoch, p_term);
    outcome := v_locked.outcome;
    head := v_locked.head;
    floor := head.floor_seq;
    more := false;
    IF outcome = 'fenced' THEN
        RETURN;
    END IF;
    SELECT max(t.last_seq), count(*), sum(t.size) INTO v_last, v_dropped, v_freed
      FROM (SELECT e.last_seq, octet_length(e.payload) AS size,
                   sum(octet_length(e.payload)) OVER (ORDER BY e.last_seq) AS running
              FROM (SELECT * FROM changefeed.entries WHERE feed_id = p_feed AND last_seq <= p_up_to
                     ORDER BY last_seq LIMIT p_entries) e) t
     WHERE t.running <= p_bytes OR t.running = t.size;
    IF v_last IS NOT NULL THEN
        UPDATE changefeed.heads h SET floor_seq = e.last_seq, floor_epoch = e.epoch, floor_term = e.term,
               floor_digest = e.digest, floor_time = e.time, bytes = h.bytes - v_freed - v_dropped * p_overhead
          FROM changefeed.entries e
         WHERE h.feed_id = p_feed AND e.feed_id = p_feed AND e.last_seq = v_last;
        DELETE FROM changefeed.entries e WHERE e.feed_id = p_feed AND e.last_seq <= v_last;
        floor := v_last;
        more := EXISTS (SELECT FROM changefeed.entries e WHERE e.feed_id = p_feed AND e.last_seq <= p_up_to);
    END IF;
    IF NOT more THEN
        -- The epoch that covers the floor stays: positions at the floor are still judged by it.
        DELETE FROM changefeed.epochs e WHERE e.feed_id = p_feed AND e.epoch < (
            SELECT max(o.epoch) FROM changefeed.epochs o WHERE o.feed_id = p_feed AND o.first <= trim_some.floor);
        DELETE FROM changefeed.publishers p
         WHERE p.feed_id = p_feed AND p.last_seq <= trim_some.floor AND p.opened < trim_some.floor;
    END IF;
    WITH past AS (
        DELETE FROM changefeed.tombstones t WHERE t.feed_id = p_feed AND t.seq <= trim_some.floor
        RETURNING t.resource, t.id, t.seq
    )
    DELETE FROM changefeed.objects o USING past
     WHERE o.feed_id = p_feed AND o.resource = past.resource AND o.id = past.id AND o.seq = past.seq
       AND o.payload IS NULL;
END $$;

-- Brings the snapshot from one seq to another. `more`: it begins anew, and there were more rows to drop than one
-- transaction should, since appends and fences wait for it: nothing is folded now, and it is to be called again.
CREATE FUNCTION changefeed.fold(p_feed integer, p_epoch bigint, p_term text, p_after bigint, p_to bigint,
                                p_resources text[], p_ids bytea[], p_seqs bigint[], p_epochs bigint[], p_terms text[],
                                p_times bigint[], p_publishers text[], p_versions bigint[], p_payloads bytea[],
                                g_resources text[], g_ids bytea[], p_versioned boolean, p_rows integer, p_bytes bigint,
                                OUT outcome text, OUT head changefeed.heads, OUT more boolean)
LANGUAGE plpgsql AS $$
DECLARE
    v_locked record;
BEGIN
    SELECT * INTO STRICT v_locked FROM changefeed.locked(p_feed, p_epoch, p_term);
    outcome := v_locked.outcome;
    head := v_locked.head;
    more := false;
    IF outcome = 'fenced' THEN
        RETURN;
    ELSIF p_after IS NOT NULL AND p_after IS DISTINCT FROM head.folded THEN
        outcome := 'tail-moved';
        RETURN;
    ELSIF p_to NOT BETWEEN head.floor_seq AND head.tail_seq THEN
        outcome := 'range';
        RETURN;
    END IF;
    IF p_after IS NULL THEN
        more := changefeed.clear_some(p_feed, p_rows, p_bytes);
        IF more THEN
            UPDATE changefeed.heads h SET folded = NULL, versioned = false WHERE h.feed_id = p_feed;
            RETURN;
        END IF;
    END IF;
    INSERT INTO changefeed.objects (feed_id, resource, id, seq, epoch, term, time, publisher, version, payload)
        SELECT p_feed, n.*
          FROM unnest(p_resources, p_ids, p_seqs, p_epochs, p_terms, p_times, p_publishers, p_versions, p_payloads) n
        ON CONFLICT (feed_id, resource, id) DO UPDATE SET seq = excluded.seq, epoch = excluded.epoch,
            term = excluded.term, time = excluded.time, publisher = excluded.publisher, version = excluded.version,
            payload = excluded.payload;
    INSERT INTO changefeed.tombstones (feed_id, seq, resource, id)
        SELECT p_feed, n.seq, n.resource, n.id
          FROM unnest(p_seqs, p_resources, p_ids, p_payloads) AS n (seq, resource, id, payload)
         WHERE n.payload IS NULL
        ON CONFLICT DO NOTHING;
    DELETE FROM changefeed.objects o USING unnest(g_resources, g_ids) AS g (resource, id)
     WHERE o.feed_id = p_feed AND o.resource = g.resource AND o.id = g.id;
    UPDATE changefeed.heads h SET folded = p_to,
           versioned = p_versioned OR (h.versioned AND p_after IS NOT NULL)
     WHERE h.feed_id = p_feed;
END $$;

-- Drops some rows of a feed's snapshot; returns whether there are more.
CREATE FUNCTION changefeed.clear_some(p_feed integer, p_rows integer, p_bytes bigint) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM changefeed.objects o USING (
        SELECT s.*, sum(s.size) OVER (ORDER BY s.resource, s.id) AS running
          FROM (SELECT b.resource, b.id, coalesce(octet_length(b.payload), 0) AS size FROM changefeed.objects b
                 WHERE b.feed_id = p_feed ORDER BY b.resource, b.id LIMIT p_rows) s) t
     WHERE o.feed_id = p_feed AND o.resource = t.resource AND o.id = t.id
       AND (t.running <= p_bytes OR t.running = t.size);
    DELETE FROM changefeed.tombstones o USING (
        SELECT b.seq, b.resource, b.id FROM changefeed.tombstones b WHERE b.feed_id = p_feed ORDER BY b.seq
         LIMIT p_rows) t
     WHERE o.feed_id = p_feed AND o.seq = t.seq AND o.resource = t.resource AND o.id = t.id;
    RETURN EXISTS (SELECT FROM changefeed.objects o WHERE o.feed_id = p_feed)
        OR EXISTS (SELECT FROM changefeed.tombstones t WHERE t.feed_id = p_feed);
END $$;

-- Rows above a key, while they fit into max_bytes; a tombstone counts 128 (rules.py says so too). A loop, since nothing
-- else stops at a sum; read in chunks, each a walk along the key: where the planner knows nothing of the table yet, it
-- would sort everything once for each chunk.
CREATE FUNCTION changefeed.list_latest(p_feed integer, p_resource text, p_id bytea, p_max_bytes bigint)
RETURNS SETOF changefeed.objects LANGUAGE plpgsql STABLE
SET enable_sort = off SET enable_bitmapscan = off SET enable_seqscan = off AS $$
DECLARE
    v_row changefeed.objects;
    v_size bigint := 0;
    v_first boolean := TRUE;
    v_count integer;
    v_resource text := p_resource;
    v_id bytea := p_id;
BEGIN
    LOOP
        v_count := 0;
        FOR v_row IN
            SELECT o.* FROM changefeed.objects o
             WHERE o.feed_id = p_feed AND (o.resource, o.id) > (v_resource, v_id)
             ORDER BY o.resource, o.id LIMIT 500
        LOOP
            v_size := v_size + coalesce(octet_length(v_row.payload), 128);
            IF v_size > p_max_bytes AND NOT v_first THEN
                RETURN;
            END IF;
            v_first := FALSE;
            v_count := v_count + 1;
            v_resource := v_row.resource;
            v_id := v_row.id;
            RETURN NEXT v_row;
        END LOOP;
        EXIT WHEN v_count < 500;
    END LOOP;
END $$;

-- Entries after a seq, while they fit into max_bytes, with the head of the same snapshot on every row.
CREATE FUNCTION changefeed.read(p_feed integer, p_after bigint, p_max_bytes bigint, p_overhead bigint)
RETURNS TABLE (head changefeed.heads, before bytea, last_seq bigint, seq bigint, epoch bigint, term text, "time" bigint,
               publisher text, incarnation bigint, after bigint, number bigint, sizes bytea, batch_digest bytea,
               digest bytea, payload bytea)
LANGUAGE sql STABLE AS $$
    SELECT h, b.digest, t.last_seq, t.seq, t.epoch, t.term, t.time, t.publisher, t.incarnation, t.after, t.number,
           t.sizes, t.batch_digest, t.digest, t.payload
      FROM changefeed.heads h
      LEFT JOIN LATERAL (
           SELECT e.*, octet_length(e.payload) + p_overhead AS size,
                  sum(octet_length(e.payload) + p_overhead) OVER (ORDER BY e.last_seq) AS running
             FROM (SELECT * FROM changefeed.entries WHERE feed_id = p_feed AND last_seq > p_after
                    ORDER BY last_seq LIMIT p_max_bytes / p_overhead + 1) e) t
           ON t.running <= p_max_bytes OR t.running = t.size
      LEFT JOIN changefeed.entries b ON b.feed_id = p_feed AND b.last_seq = t.seq - 1
     WHERE h.feed_id = p_feed
     ORDER BY t.last_seq
$$;

CREATE FUNCTION changefeed.read_time(p_feed integer, p_time bigint) RETURNS bigint LANGUAGE plpgsql STABLE AS $$
DECLARE
    -- Times never decrease along the log, so the seq is searched by halving: no index is needed for it.
    v_low bigint;
    v_high bigint;
    v_middle bigint;
    v_entry record;
BEGIN
    SELECT floor_seq, tail_seq INTO v_low, v_high FROM changefeed.heads WHERE feed_id = p_feed;
    WHILE v_low < v_high LOOP
        v_middle := (v_low + v_high + 1) / 2;
        SELECT seq, last_seq, time INTO v_entry FROM changefeed.entries
         WHERE feed_id = p_feed AND last_seq >= v_middle ORDER BY last_seq LIMIT 1;
        IF NOT FOUND THEN
            RETURN NULL;
        ELSIF v_entry.time >= p_time THEN
            v_high := least(v_high - 1, v_entry.seq - 1);
        ELSE
            v_low := greatest(v_low + 1, v_entry.last_seq);
        END IF;
    END LOOP;
    RETURN v_low;
END $$;

CREATE FUNCTION changefeed.set_settings(p_feed integer, p_version bigint, p_value text, OUT stored boolean,
                                        OUT version bigint)
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE changefeed.settings s SET version = p_version + 1, value = p_value
     WHERE s.feed_id = p_feed AND s.version = p_version;
    stored := FOUND;
    IF stored THEN
        UPDATE changefeed.heads h SET settings_version = p_version + 1 WHERE h.feed_id = p_feed;
    END IF;
    SELECT s.version INTO version FROM changefeed.settings s WHERE s.feed_id = p_feed;
END $$;

-- The process that holds a head's lock: for a fence that has waited long enough.
CREATE FUNCTION changefeed.holder(p_feed integer) RETURNS integer LANGUAGE sql STABLE AS $$
    SELECT l.pid FROM changefeed.heads h
      JOIN pg_locks l ON l.locktype = 'transactionid' AND l.granted AND l.transactionid = h.xmax
     WHERE h.feed_id = p_feed AND l.pid <> pg_backend_pid()
     LIMIT 1
$$;
