-- The outbox of layout 1: applications publish in transactions of their own; the leader moves what was committed.
--
-- ORDER. Row ids are drawn before commit, so ids alone are not the order of commits. What is promised: a transaction's
-- changes are one group, and for each key (feed, resource, id) changes are in the order of commits. publish() takes the
-- key's lock *before* it draws the row's id, and the lock is held until the transaction has ended. So of two
-- transactions with a key in common, the second draws its id of that key after the first has committed: all ids of the
-- first are lower than that one, hence lower than the second's highest. Whole transactions in the order of their
-- *highest* id therefore agree with every key. (By their lowest id, or by transaction id, they do not.) And whoever
-- sees the second sees the first: a lock is released after its transaction has become visible.
-- The sequence must give ids in the order in which they are drawn: CACHE 1, checked when a log is opened.

CREATE SEQUENCE changefeed.outbox_id CACHE 1;

CREATE TABLE changefeed.outbox (
    feed_id integer NOT NULL,
    id bigint NOT NULL,
    xid bigint NOT NULL,
    bytes integer NOT NULL,
    version bigint,
    resource text NOT NULL,
    object text NOT NULL,
    op text NOT NULL,
    fields text[],
    body text,
    meta text,
    PRIMARY KEY (feed_id, id)
    -- It fills and drains all the time: dead rows go soon, and its table stays small.
) WITH (autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_insert_threshold = -1,
        autovacuum_vacuum_cost_delay = 0, vacuum_truncate = off);
CREATE INDEX outbox_by_transaction ON changefeed.outbox (feed_id, xid, id);

-- What publish() refuses. outbox_max: rows that wait of one feed; when_full: 'raise' or 'warn'.
CREATE TABLE changefeed.limits (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    change_bytes_max integer NOT NULL DEFAULT 1048576 CHECK (change_bytes_max BETWEEN 1024 AND 1048576),
    group_bytes_max integer NOT NULL DEFAULT 8388608 CHECK (group_bytes_max BETWEEN 1024 AND 8388608),
    group_changes_max integer NOT NULL DEFAULT 50000 CHECK (group_changes_max BETWEEN 1 AND 50000),
    keys_max integer NOT NULL DEFAULT 1000 CHECK (keys_max > 0),
    outbox_max bigint NOT NULL DEFAULT 10000000 CHECK (outbox_max > 0),
    when_full text NOT NULL DEFAULT 'raise' CHECK (when_full IN ('raise', 'warn'))
);
INSERT INTO changefeed.limits DEFAULT VALUES;

-- Raises what Change.check refuses, with the sentence that it says.
CREATE FUNCTION changefeed.check_change(resource text, id text, op text, fields text[], body jsonb, version bigint,
                                        meta jsonb) RETURNS void
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog AS $$
DECLARE
    v_field text;
BEGIN
    IF resource IS NULL OR resource !~ '^[A-Za-z0-9_][A-Za-z0-9_.:-]{0,63}$' THEN
        RAISE 'invalid-change: resource % is not a word of 1 to 64 letters, digits or _.:-', quote_nullable(resource)
            USING ERRCODE = '22023';
    ELSIF id IS NULL OR octet_length(id) NOT BETWEEN 1 AND 512 THEN
        RAISE 'invalid-change: id must be text of 1 to 512 bytes, got %', left(quote_nullable(id), 80)
            USING ERRCODE = '22023';
    ELSIF op IS NULL OR op !~ '^[A-Za-z0-9_][A-Za-z0-9_.:-]{0,63}$' THEN
        RAISE 'invalid-change: op % is not a word of 1 to 64 letters, digits or _.:-', quote_nullable(op)
            USING ERRCODE = '22023';
    ELSIF version < 0 THEN
        RAISE 'invalid-change: version must be an integer from 0 to 2**63 - 1, got %', version USING ERRCODE = '22023';
    ELSIF meta IS NOT NULL AND jsonb_typeof(meta) <> 'object' THEN
        RAISE 'invalid-change: meta must be a map with text keys, got %', jsonb_typeof(meta) USING ERRCODE = '22023';
    ELSIF cardinality(fields) > 1024 THEN
        RAISE 'invalid-change: % fields; the limit is 1024: leave fields out instead', cardinality(fields)
            USING ERRCODE = '22023';
    END IF;
    FOREACH v_field IN ARRAY coalesce(fields, '{}') LOOP
        IF v_field IS NULL OR v_field !~ '^[^[:space:][:cntrl:],]{1,64}$' THEN
            RAISE 'invalid-change: field % must be 1 to 64 characters without spaces or commas', quote_nullable(v_field)
                USING ERRCODE = '22023';
        END IF;
    END LOOP;
    IF jsonb_path_exists(body, '$.** ? (@.type() == "number" && (@ > 18446744073709551615 || @ < -9223372036854775808))')
        OR jsonb_path_exists(meta, '$.** ? (@.type() == "number" && (@ > 18446744073709551615 || @ < -9223372036854775808))')
    THEN
        RAISE 'invalid-change: a number is outside of [-2**63, 2**64); send it as text' USING ERRCODE = '22023';
    ELSIF jsonb_path_exists(body, '$.**{65}') OR jsonb_path_exists(meta, '$.**{65}') THEN
        RAISE 'invalid-change: more than 64 lists and maps inside each other' USING ERRCODE = '22023';
    END IF;
END $$;

-- Raises for names that the feed does not declare. p_value: the feed's settings.
CREATE FUNCTION changefeed.check_declared(p_value jsonb, p_resource text, p_fields text[]) RETURNS void
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog AS $$
DECLARE
    v_declared jsonb := p_value -> 'resources';
    v_resource jsonb;
    v_field text;
BEGIN
    IF jsonb_array_length(v_declared) = 0 THEN
        RETURN;
    END IF;
    v_resource := jsonb_path_query_first(v_declared, '$[*] ? (@.name == $name)', jsonb_build_object('name', p_resource));
    IF v_resource IS NULL THEN
        RAISE 'unknown-resource: the feed declares no resource %; it declares %', quote_literal(p_resource),
            (SELECT string_agg(r ->> 'name', ', ' ORDER BY r ->> 'name') FROM jsonb_array_elements(v_declared) r)
            USING ERRCODE = '22023';
    ELSIF jsonb_typeof(v_resource -> 'fields') = 'array' THEN
        SELECT f INTO v_field FROM unnest(p_fields) f WHERE NOT (v_resource -> 'fields') ? f LIMIT 1;
        IF FOUND THEN
            RAISE 'unknown-field: the feed declares no field % of %; it declares %', quote_literal(v_field),
                quote_literal(p_resource),
                (SELECT string_agg(n, ', ' ORDER BY n) FROM jsonb_array_elements_text(v_resource -> 'fields') n)
                USING ERRCODE = '22023';
        END IF;
    END IF;
END $$;

-- Raises for what a feed that keeps a snapshot takes from no publisher: a create or update without a body, and a change
-- without version of an object that has one in the snapshot. The caller holds the key's lock. This is all that is
-- checked: the leader moves what was committed, whatever it is. What waits here still, or is in the log and not folded
-- yet, is not looked at: an object's first versions may be followed by a change without, which then takes its place.
-- Captured tables are not asked at all: the database itself has put their changes into an order, and without a body are
-- only those of which the mover must leave it out (see outbox.py).
CREATE FUNCTION changefeed.check_snapshot(p_feed integer, p_resource text, p_id text, p_op text, p_body jsonb,
                                          p_version bigint) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog AS $$
DECLARE
    v_version bigint;
BEGIN
    IF p_op IN ('create', 'update') AND (p_body IS NULL OR jsonb_typeof(p_body) = 'null') THEN
        RAISE 'body-missing: the % of % % has no body, and this feed keeps a snapshot: whoever starts with it would be given an object without content; publish the whole object in body',
            p_op, p_resource, quote_literal(left(p_id, 80)) USING ERRCODE = '22023';
    ELSIF p_version IS NULL THEN
        SELECT o.version INTO v_version FROM changefeed.objects o
         WHERE o.feed_id = p_feed AND o.resource = p_resource AND o.id = convert_to(p_id, 'UTF8')
           AND o.version IS NOT NULL;
        IF FOUND THEN
            RAISE 'version-missing: the change of % % has no version, but the object''s changes carry one (% stands) and this feed keeps a snapshot: nobody could say which is newer; publish it with a version above that one',
                p_resource, quote_literal(left(p_id, 80)), v_version USING ERRCODE = '22023';
        END IF;
    END IF;
END $$;

-- Puts one row into the outbox. The caller holds the key's lock: the id is drawn here, after it.
CREATE FUNCTION changefeed.put(p_feed integer, p_name text, p_resource text, p_id text, p_op text, p_fields text[],
                               p_body text, p_version bigint, p_meta text, p_split boolean) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
    v_limits changefeed.limits;
    v_id bigint;
    v_bytes integer := octet_length(p_resource) + octet_length(p_id) + coalesce(octet_length(p_body), 0)
        + coalesce(octet_length(p_meta), 0) + 64;
    v_sums bigint[] := coalesce(nullif(current_setting('changefeed.sums_' || p_feed, true), ''), '{0,0}')::bigint[];
BEGIN
    SELECT * INTO STRICT v_limits FROM changefeed.limits;
    v_sums := ARRAY[v_sums[1] + v_bytes, v_sums[2] + 1];
    PERFORM set_config('changefeed.sums_' || p_feed, v_sums::text, true);
    IF v_bytes > v_limits.change_bytes_max THEN
        RAISE 'change-too-large: the change of % % takes % bytes; change_bytes_max is %: publish a smaller body, or a reference to where the whole object can be read',
            p_resource, quote_literal(left(p_id, 80)), v_bytes, v_limits.change_bytes_max USING ERRCODE = '54000';
    ELSIF NOT p_split AND (v_sums[1] > v_limits.group_bytes_max OR v_sums[2] > v_limits.group_changes_max) THEN
        RAISE 'group-too-large: this transaction publishes % bytes in % changes of feed %; one group may hold % bytes and % changes: use several transactions',
            v_sums[1], v_sums[2], p_name, v_limits.group_bytes_max, v_limits.group_changes_max USING ERRCODE = '54000';
    END IF;
    v_id := nextval('changefeed.outbox_id');
    INSERT INTO changefeed.outbox (feed_id, id, xid, bytes, version, resource, object, op, fields, body, meta)
        VALUES (p_feed, v_id, pg_current_xact_id()::text::bigint, v_bytes, p_version, p_resource, p_id, p_op, p_fields,
                p_body, p_meta);
    -- Counting rows costs more than it is worth: the span of ids, now and then, is near enough for a bound.
    IF v_id % 256 = 0 THEN
        PERFORM changefeed.check_room(p_feed, p_name, v_limits);
    END IF;
    RETURN v_id;
END $$;

CREATE FUNCTION changefeed.check_room(p_feed integer, p_name text, p_limits changefeed.limits) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
    v_span bigint;
BEGIN
    SELECT (SELECT id FROM changefeed.outbox WHERE feed_id = p_feed ORDER BY id DESC LIMIT 1)
         - (SELECT id FROM changefeed.outbox WHERE feed_id = p_feed ORDER BY id LIMIT 1) INTO v_span;
    IF v_span <= p_limits.outbox_max THEN
        RETURN;
    ELSIF p_limits.when_full = 'warn' THEN
        RAISE WARNING 'outbox-full: about % changes of feed % wait to be moved; does an instance lead it?', v_span, p_name;
    ELSE
        RAISE 'outbox-full: about % changes of feed % wait to be moved, the limit (changefeed.limits.outbox_max) is %; does an instance lead it?',
            v_span, p_name, p_limits.outbox_max USING ERRCODE = '53400';
    END IF;
END $$;

-- Publish a change with the transaction that calls it. Returns its row's id, for people. An application's role needs
-- USAGE on the schema and EXECUTE on this function, and nothing else.
CREATE FUNCTION changefeed.publish(feed text, resource text, id text, op text, fields text[] DEFAULT NULL,
                                   body jsonb DEFAULT NULL, version bigint DEFAULT NULL, meta jsonb DEFAULT NULL)
RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
DECLARE
    v_feed integer;
    v_settings jsonb;
    v_keys integer;
BEGIN
    SELECT f.id, s.value::jsonb INTO v_feed, v_settings FROM changefeed.feeds f JOIN changefeed.settings s ON s.feed_id = f.id
     WHERE f.feed = publish.feed;
    IF NOT FOUND THEN
        RAISE 'unknown-feed: there is no feed % in this database; there are: %', quote_nullable(feed),
            coalesce((SELECT string_agg(f.feed, ', ' ORDER BY f.feed) FROM changefeed.feeds f), 'none')
            USING ERRCODE = '22023', HINT = 'A feed is made when an instance first takes part in it.';
    END IF;
    PERFORM changefeed.check_change(resource, id, op, fields, body, version, meta);
    PERFORM changefeed.check_declared(v_settings, resource, fields);
    -- Locks take room that all sessions share. A transaction of very many keys takes the whole feed instead.
    v_keys := coalesce(nullif(current_setting('changefeed.keys_' || v_feed, true), ''), '0')::integer + 1;
    PERFORM set_config('changefeed.keys_' || v_feed, v_keys::text, true);
    IF v_keys > (SELECT keys_max FROM changefeed.limits) THEN
        PERFORM pg_advisory_xact_lock(hashtextextended('changefeed ' || v_feed, 0));
    ELSE
        PERFORM pg_advisory_xact_lock_shared(hashtextextended('changefeed ' || v_feed, 0));
        PERFORM pg_advisory_xact_lock(hashtextextended(v_feed || ' ' || resource || ' ' || id, 1));
    END IF;
    IF v_settings -> 'snapshot' = 'true' THEN
        PERFORM changefeed.check_snapshot(v_feed, resource, id, op, body, version);
    END IF;
    RETURN changefeed.put(v_feed, feed, resource, id, op, fields, body::text, version, meta::text, false);
END $$;

-- What the leader may move next: whole transactions in the order of their highest id (`top`), as many as end within the
-- lowest p_rows rows. Of the first one at least one row, and of one larger than a group may be as much as fits: the
-- caller tells by `top`. `part`: how many parts of it have been moved. One snapshot: STABLE.
CREATE FUNCTION changefeed.outbox_waiting(p_feed integer, p_rows integer, p_group_rows integer, p_bytes bigint)
RETURNS TABLE (xid bigint, top bigint, part integer, id bigint, resource text, object text, op text, fields text[],
               body text, version bigint, meta text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog AS $$
DECLARE
    v_open bigint;
    v_part integer;
    v_bound bigint;
    v_xids bigint[];
BEGIN
    SELECT h.outbox_open, h.outbox_part INTO v_open, v_part FROM changefeed.heads h WHERE h.feed_id = p_feed;
    IF v_open IS NOT NULL THEN
        v_xids := ARRAY[v_open];
    ELSE
        WITH lowest AS (
            SELECT o.id, o.xid FROM changefeed.outbox o WHERE o.feed_id = p_feed ORDER BY o.id LIMIT p_rows
        ), tops AS (
            SELECT l.xid, (SELECT max(o.id) FROM changefeed.outbox o WHERE o.feed_id = p_feed AND o.xid = l.xid) AS top
              FROM (SELECT DISTINCT lowest.xid FROM lowest) l
        )
        SELECT array_agg(t.xid ORDER BY t.top) FILTER (WHERE t.top <= (SELECT max(l.id) FROM lowest l)), min(t.top)
          INTO v_xids, v_bound FROM tops t;
        IF v_bound IS NULL THEN
            RETURN;
        ELSIF v_xids IS NULL THEN
            -- None ends there: of all that begin up to the lowest end, the one that ends first.
            SELECT ARRAY[s.xid] INTO v_xids FROM (
                SELECT o.xid, max(o.id) AS top FROM changefeed.outbox o WHERE o.feed_id = p_feed AND o.id <= v_bound
                 GROUP BY o.xid) s
             WHERE NOT EXISTS (SELECT FROM changefeed.outbox o
                                WHERE o.feed_id = p_feed AND o.xid = s.xid AND o.id > s.top)
             ORDER BY s.top LIMIT 1;
        END IF;
    END IF;
    RETURN QUERY
        SELECT r.xid, (SELECT max(o.id) FROM changefeed.outbox o WHERE o.feed_id = p_feed AND o.xid = r.xid),
               CASE WHEN r.xid = v_open THEN v_part ELSE 0 END, r.id, r.resource, r.object, r.op, r.fields, r.body,
               r.version, r.meta
          FROM (SELECT t.ord, w.*, row_number() OVER (ORDER BY t.ord, w.id) AS number,
                       sum(w.bytes) OVER (ORDER BY t.ord, w.id) AS running
                  FROM unnest(v_xids) WITH ORDINALITY AS t (xid, ord)
                 CROSS JOIN LATERAL (SELECT o.* FROM changefeed.outbox o WHERE o.feed_id = p_feed AND o.xid = t.xid
                                      ORDER BY o.id LIMIT p_group_rows) w) r
         WHERE r.number <= p_group_rows AND (r.running <= p_bytes OR r.number = 1)
         ORDER BY r.ord, r.id;
END $$;
