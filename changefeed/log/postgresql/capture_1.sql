-- Captured tables of layout 1: triggers that put each insert, update, delete and truncate of a table into the outbox.
--
-- ORDER. A row's own lock is held before its change is put here and until the transaction has ended: where a captured
-- key is a plain unique index, that is the lock which the outbox's order needs (see outbox_1.sql). Where it is not,
-- the trigger takes the key's advisory lock (`locks`).
--
-- Triggers are of statements, with transition tables: a bulk statement costs one call. They run as the schema's owner.

CREATE TABLE changefeed.captures (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    feed_id integer NOT NULL REFERENCES changefeed.feeds,
    relation oid NOT NULL UNIQUE,
    resource text NOT NULL,
    -- Columns by number, so that they may be renamed. kept: NULL for all that are not left out.
    id_columns smallint[] NOT NULL,
    kept smallint[],
    left_out smallint[] NOT NULL DEFAULT '{}',
    before boolean NOT NULL DEFAULT false,
    locks boolean NOT NULL,
    split boolean NOT NULL DEFAULT true,
    -- Of the rows that were there before: NULL when all have been put, else the key after which to go on.
    initial boolean NOT NULL DEFAULT false,
    initial_after text[]
);

-- What follows is wanted for every row or statement. It has no setting of its own, since one costs more than the
-- function does; and it is PL/pgSQL where PostgreSQL could not put it into the query, since each session then plans it
-- once and not at each call.

CREATE FUNCTION changefeed.escaped(p_text text) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT replace(replace(coalesce(p_text, '\N'), '\', '\\'), ',', '\,')
$$;

-- The id of a row: its id columns as text, joined by commas; a comma or a backslash inside is escaped. A longer one than
-- an id may be is told by its hash.
CREATE FUNCTION changefeed.row_id(p_row jsonb, p_names text[]) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    v_id text;
BEGIN
    IF cardinality(p_names) = 1 THEN
        v_id := changefeed.escaped(p_row ->> p_names[1]);
    ELSE
        SELECT string_agg(changefeed.escaped(p_row ->> n.name), ',' ORDER BY n.ord) INTO v_id
          FROM unnest(p_names) WITH ORDINALITY AS n (name, ord);
    END IF;
    IF octet_length(v_id) BETWEEN 1 AND 512 THEN
        RETURN v_id;
    END IF;
    RETURN 'md5:' || md5(v_id);
END $$;

-- Names of columns by number; NULL for NULL and for none.
CREATE FUNCTION changefeed.names_of(p_relation oid, p_numbers smallint[]) RETURNS text[]
LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF cardinality(p_numbers) > 0 THEN
        RETURN (SELECT array_agg(a.attname::text ORDER BY n.ord)
                  FROM unnest(p_numbers) WITH ORDINALITY AS n (number, ord)
                  JOIN pg_attribute a ON a.attrelid = p_relation AND a.attnum = n.number AND NOT a.attisdropped);
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION changefeed.only(p_row jsonb, p_kept text[]) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce(jsonb_object_agg(e.key, e.value), '{}') FROM jsonb_each(p_row) e WHERE e.key = ANY (p_kept)
$$;

-- A row without what the capture leaves out.
CREATE FUNCTION changefeed.shown(p_row jsonb, p_kept text[], p_left_out text[]) RETURNS jsonb
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN p_kept IS NULL THEN p_row - p_left_out ELSE changefeed.only(p_row, p_kept) - p_left_out END
$$;

-- Names of the columns that differ, sorted; NULL for none.
CREATE FUNCTION changefeed.changed(p_old jsonb, p_new jsonb) RETURNS text[] LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    RETURN (SELECT array_agg(n.key ORDER BY n.key) FROM jsonb_each(p_new) n
             WHERE n.value IS DISTINCT FROM p_old -> n.key);
END $$;

-- Puts the rows of one statement, all of one op at a time, in one insert.
CREATE FUNCTION changefeed.put_rows(p_capture changefeed.captures, p_ids text[], p_ops text[], p_fields jsonb[],
                                    p_bodies jsonb[], p_metas jsonb[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
    v_limits changefeed.limits;
    v_key text := 'changefeed.sums_' || p_capture.feed_id;
    v_sums bigint[] := coalesce(nullif(current_setting(v_key, true), ''), '{0,0}')::bigint[];
    v_bytes bigint;
BEGIN
    IF cardinality(p_ids) IS NULL OR cardinality(p_ids) = 0 THEN
        RETURN;
    END IF;
    SELECT * INTO STRICT v_limits FROM changefeed.limits;
    IF p_capture.locks THEN
        IF cardinality(p_ids) > v_limits.keys_max THEN
            PERFORM pg_advisory_xact_lock(hashtextextended('changefeed ' || p_capture.feed_id, 0));
        ELSE
            PERFORM pg_advisory_xact_lock_shared(hashtextextended('changefeed ' || p_capture.feed_id, 0));
            PERFORM pg_advisory_xact_lock(hashtextextended(
                        p_capture.feed_id || ' ' || p_capture.resource || ' ' || k.id, 1))
               FROM (SELECT DISTINCT unnest(p_ids) AS id ORDER BY 1) k;
        END IF;
    END IF;
    WITH put AS (
        INSERT INTO changefeed.outbox (feed_id, id, xid, bytes, resource, object, op, fields, body, meta)
        SELECT p_capture.feed_id, nextval('changefeed.outbox_id'), pg_current_xact_id()::text::bigint,
               octet_length(r.id) + coalesce(octet_length(r.body::text), 0) + coalesce(octet_length(r.meta::text), 0) + 64,
               p_capture.resource, r.id, r.op,
               CASE WHEN r.fields IS NOT NULL THEN ARRAY(SELECT jsonb_array_elements_text(r.fields)) END,
               r.body::text, r.meta::text
          FROM unnest(p_ids, p_ops, p_fields, p_bodies, p_metas) AS r (id, op, fields, body, meta)
        RETURNING bytes
    )
    SELECT sum(put.bytes) INTO v_bytes FROM put;
    v_sums := ARRAY[v_sums[1] + v_bytes, v_sums[2] + cardinality(p_ids)];
    PERFORM set_config(v_key, v_sums::text, true);
    IF NOT p_capture.split AND (v_sums[1] > v_limits.group_bytes_max OR v_sums[2] > v_limits.group_changes_max) THEN
        RAISE 'group-too-large: this transaction changes % bytes in % rows of captured tables; one group may hold % bytes and % changes: use several transactions, or capture the table with splitting',
            v_sums[1], v_sums[2], v_limits.group_bytes_max, v_limits.group_changes_max USING ERRCODE = '54000';
    END IF;
END $$;

-- Times are told in UTC, whatever the session's time zone is.
CREATE FUNCTION changefeed.captured() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog
    SET TimeZone = 'UTC'
AS $$
DECLARE
    v_capture changefeed.captures;
    v_names text[];
    v_kept text[];
    v_left_out text[];
    v_ids text[];
    v_ops text[];
    v_fields jsonb[];
    v_bodies jsonb[];
    v_metas jsonb[];
BEGIN
    SELECT * INTO v_capture FROM changefeed.captures WHERE relation = TG_RELID;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    v_names := changefeed.names_of(TG_RELID, v_capture.id_columns);
    v_kept := changefeed.names_of(TG_RELID, v_capture.kept);
    v_left_out := coalesce(changefeed.names_of(TG_RELID, v_capture.left_out), '{}');
    IF cardinality(v_names) IS DISTINCT FROM cardinality(v_capture.id_columns) THEN
        RAISE 'capture: an id column of captured table % was dropped; run changefeed capture remove, then add it again',
            TG_RELID::regclass USING ERRCODE = '55000';
    END IF;
    -- n.*, not n: a table may have a column of that name.
    CASE TG_OP
    WHEN 'INSERT' THEN
        SELECT array_agg(changefeed.row_id(r.new, v_names)), array_agg('create'::text), array_agg(NULL::jsonb),
               array_agg(changefeed.shown(r.new, v_kept, v_left_out)), array_agg(NULL::jsonb)
          INTO v_ids, v_ops, v_fields, v_bodies, v_metas
          FROM (SELECT to_jsonb(n.*) AS new FROM new_rows n) r;
    WHEN 'DELETE' THEN
        SELECT array_agg(changefeed.row_id(r.old, v_names)), array_agg('delete'::text), array_agg(NULL::jsonb),
               array_agg(CASE WHEN v_capture.before THEN changefeed.shown(r.old, v_kept, v_left_out) END),
               array_agg(NULL::jsonb)
          INTO v_ids, v_ops, v_fields, v_bodies, v_metas
          FROM (SELECT to_jsonb(o.*) AS old FROM old_rows o) r;
    WHEN 'UPDATE' THEN
        -- Rows of one key are paired in turn, so that a table without a key loses none. A changed key is a delete and a
        -- create, all deletes first: a key may move from one row to another.
        WITH olds AS (
            SELECT r.id, r.old, row_number() OVER (PARTITION BY r.id ORDER BY r.old) AS n
              FROM (SELECT to_jsonb(o.*) AS old, changefeed.row_id(to_jsonb(o.*), v_names) AS id FROM old_rows o) r
        ), news AS (
            SELECT r.id, r.new, row_number() OVER (PARTITION BY r.id ORDER BY r.new) AS n
              FROM (SELECT to_jsonb(n.*) AS new, changefeed.row_id(to_jsonb(n.*), v_names) AS id FROM new_rows n) r
        ), pairs AS (
            SELECT coalesce(olds.id, news.id) AS id,
                   changefeed.shown(olds.old, v_kept, v_left_out) AS old,
                   changefeed.shown(news.new, v_kept, v_left_out) AS new
              FROM olds FULL JOIN news ON news.id = olds.id AND news.n = olds.n
        ), judged AS (
            SELECT p.id, p.old, p.new, changefeed.changed(p.old, p.new) AS fields,
                   CASE WHEN p.new IS NULL THEN 'delete' WHEN p.old IS NULL THEN 'create' ELSE 'update' END AS op
              FROM pairs p
        )
        SELECT array_agg(j.id ORDER BY j.op <> 'delete'), array_agg(j.op ORDER BY j.op <> 'delete'),
               array_agg(CASE WHEN j.op = 'update' THEN to_jsonb(j.fields) END ORDER BY j.op <> 'delete'),
               array_agg(CASE WHEN j.op <> 'delete' THEN j.new WHEN v_capture.before THEN j.old END
                         ORDER BY j.op <> 'delete'),
               array_agg(CASE WHEN j.op = 'update' AND v_capture.before THEN jsonb_build_object('before', j.old) END
                         ORDER BY j.op <> 'delete')
          INTO v_ids, v_ops, v_fields, v_bodies, v_metas
          FROM judged j WHERE j.op <> 'update' OR j.fields IS NOT NULL;
    ELSE  -- TRUNCATE
        v_ids := ARRAY['*'];
        v_ops := ARRAY['truncate'];
        v_fields := ARRAY[NULL::jsonb];
        v_bodies := ARRAY[NULL::jsonb];
        v_metas := ARRAY[NULL::jsonb];
    END CASE;
    PERFORM changefeed.put_rows(v_capture, v_ids, v_ops, v_fields, v_bodies, v_metas);
    RETURN NULL;
END $$;

-- What an id may be made of: whether these columns are a plain unique index whose columns are never null.
CREATE FUNCTION changefeed.is_key(p_relation oid, p_columns smallint[]) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
    SELECT EXISTS (
        SELECT FROM pg_index i
         WHERE i.indrelid = p_relation AND i.indisunique AND i.indimmediate AND i.indisvalid
           AND i.indpred IS NULL AND i.indexprs IS NULL
           AND (SELECT array_agg(k ORDER BY k) FROM unnest(i.indkey::smallint[]) WITH ORDINALITY AS u (k, n)
                 WHERE u.n <= i.indnkeyatts) <@ p_columns
           AND NOT EXISTS (SELECT FROM unnest(i.indkey::smallint[]) k JOIN pg_attribute a
                              ON a.attrelid = p_relation AND a.attnum = k WHERE NOT a.attnotnull))
$$;

-- About how many rows wait in a feed's outbox.
CREATE FUNCTION changefeed.outbox_span(p_feed integer) RETURNS bigint LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
    SELECT coalesce((SELECT id FROM changefeed.outbox WHERE feed_id = p_feed ORDER BY id DESC LIMIT 1)
                  - (SELECT id FROM changefeed.outbox WHERE feed_id = p_feed ORDER BY id LIMIT 1) + 1, 0)
$$;

-- Key columns compared with values that are given as text: "(a, b) > ('1'::integer, 'x'::text)".
CREATE FUNCTION changefeed.key_bound(p_relation oid, p_numbers smallint[], p_operator text, p_values text[]) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
    SELECT format('(%s) %s (%s)', string_agg(quote_ident(a.attname), ', ' ORDER BY u.ord), p_operator,
                  string_agg(format('%L::%s', p_values[u.ord], format_type(a.atttypid, a.atttypmod)), ', ' ORDER BY u.ord))
      FROM unnest(p_numbers) WITH ORDINALITY AS u (number, ord)
      JOIN pg_attribute a ON a.attrelid = p_relation AND a.attnum = u.number
$$;

-- Puts the rows that meet a condition as `present`, locked: the lock makes a `present` one of the row's changes, after
-- all that are committed and before all that will be. Returns how many.
CREATE FUNCTION changefeed.put_present(p_relation oid, p_condition text) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog SET TimeZone = 'UTC' AS $$
DECLARE
    v_capture changefeed.captures;
    v_names text[];
    v_kept text[];
    v_left_out text[];
    v_rows jsonb[];
BEGIN
    SELECT * INTO STRICT v_capture FROM changefeed.captures WHERE relation = p_relation;
    v_names := changefeed.names_of(p_relation, v_capture.id_columns);
    v_kept := changefeed.names_of(p_relation, v_capture.kept);
    v_left_out := coalesce(changefeed.names_of(p_relation, v_capture.left_out), '{}');
    EXECUTE format('SELECT array_agg(to_jsonb(t.*)) FROM (SELECT * FROM %s WHERE %s FOR SHARE) t', p_relation::regclass,
                   p_condition) INTO v_rows;
    -- Rows that are put in one transaction here need not be one group for anybody: never refused for their number.
    v_capture.split := true;
    v_capture.locks := false;
    PERFORM changefeed.put_rows(v_capture, array_agg(changefeed.row_id(r.row, v_names) ORDER BY r.ord),
                                array_agg('present'::text), array_agg(NULL::jsonb),
                                array_agg(changefeed.shown(r.row, v_kept, v_left_out) ORDER BY r.ord),
                                array_agg(NULL::jsonb))
       FROM unnest(v_rows) WITH ORDINALITY AS r (row, ord);
    RETURN coalesce(cardinality(v_rows), 0);
END $$;

-- One chunk of what was there before, and how far it came. Returns how many rows it put, NULL when all have been.
CREATE FUNCTION changefeed.put_chunk(p_relation oid, p_rows integer) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog SET TimeZone = 'UTC' AS $$
DECLARE
    v_capture changefeed.captures;
    v_columns text;
    v_texts text;
    v_after text := 'true';
    v_bound text[];
    v_put bigint;
BEGIN
    SELECT * INTO STRICT v_capture FROM changefeed.captures WHERE relation = p_relation FOR UPDATE;
    IF NOT v_capture.initial THEN
        RETURN NULL;
    END IF;
    SELECT string_agg(quote_ident(n), ', ' ORDER BY ord), string_agg(quote_ident(n) || '::text', ', ' ORDER BY ord)
      INTO v_columns, v_texts
      FROM unnest(changefeed.names_of(p_relation, v_capture.id_columns)) WITH ORDINALITY AS u (n, ord);
    IF v_capture.initial_after IS NOT NULL THEN
        v_after := changefeed.key_bound(p_relation, v_capture.id_columns, '>', v_capture.initial_after);
    END IF;
    -- Where the chunk ends is found before its rows are locked: a row whose key changes meanwhile must not move it.
    EXECUTE format('SELECT ARRAY[%s] FROM (SELECT %s FROM %s WHERE %s ORDER BY %s LIMIT %s) t ORDER BY %s LIMIT 1',
                   v_texts, v_columns, p_relation::regclass, v_after, v_columns, p_rows,
                   replace(v_columns, ', ', ' DESC, ') || ' DESC') INTO v_bound;
    IF v_bound IS NULL THEN
        UPDATE changefeed.captures SET initial = false, initial_after = NULL WHERE relation = p_relation;
        RETURN NULL;
    END IF;
    v_put := changefeed.put_present(p_relation, v_after || ' AND '
                 || changefeed.key_bound(p_relation, v_capture.id_columns, '<=', v_bound));
    UPDATE changefeed.captures SET initial_after = v_bound WHERE relation = p_relation;
    RETURN v_put;
END $$;
