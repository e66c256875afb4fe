/* slot_self_heal--0.1.0.sql */

-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION slot_self_heal" to load this file. \quit

-- The functions under the views return text where the view shows a name.
-- search_path is pinned because they read catalogs on behalf of the caller.

CREATE FUNCTION @extschema@.slot_self_heal_get_status(
    OUT slot_name text,
    OUT database text,
    OUT plugin text,
    OUT state text,
    OUT state_since timestamptz,
    OUT creation_started timestamptz,
    OUT creator_pid int4,
    OUT creator_type text,
    OUT creator_application text,
    OUT blockers jsonb,
    OUT nudges int4,
    OUT last_nudge_at timestamptz,
    OUT last_nudge_lsn pg_lsn,
    OUT retained_wal int8,
    OUT wal_status text,
    OUT safe_wal_size int8,
    OUT detail text,
    OUT hint text)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'slot_self_heal_get_status_wrapper'
LANGUAGE C STRICT VOLATILE PARALLEL RESTRICTED
SET search_path = pg_catalog, pg_temp;

CREATE VIEW @extschema@.slot_self_heal_status AS
SELECT s.slot_name::pg_catalog.name AS slot_name,
       s.database::pg_catalog.name AS database,
       s.plugin::pg_catalog.name AS plugin,
       s.state,
       s.state_since,
       s.creation_started,
       s.creator_pid,
       s.creator_type,
       s.creator_application,
       s.blockers,
       s.nudges,
       s.last_nudge_at,
       s.last_nudge_lsn,
       s.retained_wal,
       s.wal_status,
       s.safe_wal_size,
       s.detail,
       s.hint
  FROM @extschema@.slot_self_heal_get_status() AS s;

CREATE FUNCTION @extschema@.slot_self_heal_get_worker(
    OUT pid int4,
    OUT role text,
    OUT database text,
    OUT started_at timestamptz,
    OUT last_scan_at timestamptz,
    OUT scans int8,
    OUT nudges int8,
    OUT healed int8,
    OUT cancelled int8,
    OUT upstream text,
    OUT last_error text,
    OUT last_error_at timestamptz,
    OUT hint text)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'slot_self_heal_get_worker_wrapper'
LANGUAGE C STRICT VOLATILE PARALLEL RESTRICTED
SET search_path = pg_catalog, pg_temp;

CREATE VIEW @extschema@.slot_self_heal_worker AS
SELECT w.pid,
       w.role,
       w.database::pg_catalog.name AS database,
       w.started_at,
       w.last_scan_at,
       w.scans,
       w.nudges,
       w.healed,
       w.cancelled,
       w.upstream,
       w.last_error,
       w.last_error_at,
       w.hint
  FROM @extschema@.slot_self_heal_get_worker() AS w;

CREATE FUNCTION @extschema@.slot_self_heal_get_history(
    OUT slot_name text,
    OUT database text,
    OUT creator_type text,
    OUT creator_application text,
    OUT started_at timestamptz,
    OUT ended_at timestamptz,
    OUT outcome text,
    OUT waited_for_transactions float8,
    OUT waited_for_record float8,
    OUT waited_for_replay float8,
    OUT nudges int4,
    OUT max_retained_wal int8,
    OUT blockers jsonb)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'slot_self_heal_get_history_wrapper'
LANGUAGE C STRICT VOLATILE PARALLEL RESTRICTED
SET search_path = pg_catalog, pg_temp;

CREATE VIEW @extschema@.slot_self_heal_history AS
SELECT h.slot_name::pg_catalog.name AS slot_name,
       h.database::pg_catalog.name AS database,
       h.creator_type,
       h.creator_application,
       h.started_at,
       h.ended_at,
       h.outcome,
       pg_catalog.make_interval(secs => h.waited_for_transactions) AS waited_for_transactions,
       pg_catalog.make_interval(secs => h.waited_for_record) AS waited_for_record,
       pg_catalog.make_interval(secs => h.waited_for_replay) AS waited_for_replay,
       h.nudges,
       h.max_retained_wal,
       h.blockers
  FROM @extschema@.slot_self_heal_get_history() AS h;

-- SECURITY DEFINER: whoever may execute it need not have been granted
-- pg_log_standby_snapshot() as well.
CREATE FUNCTION @extschema@.slot_self_heal_nudge()
RETURNS pg_lsn
AS 'MODULE_PATHNAME', 'slot_self_heal_nudge_wrapper'
LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp;

-- SECURITY DEFINER: whoever may execute it has sessions ended by this server's
-- settings and guards, not by privileges of its own.
CREATE FUNCTION @extschema@.slot_self_heal_end_blocker(
    xid xid,
    blocked_for interval,
    OUT action text,
    OUT reason text)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'slot_self_heal_end_blocker_wrapper'
LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp;

CREATE FUNCTION @extschema@.slot_self_heal_reset()
RETURNS void
AS 'MODULE_PATHNAME', 'slot_self_heal_reset_wrapper'
LANGUAGE C STRICT VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp;

COMMENT ON VIEW @extschema@.slot_self_heal_status IS
    'one row per logical replication slot: what its creation waits for, and what to do';
COMMENT ON VIEW @extschema@.slot_self_heal_worker IS
    'the background worker of slot_self_heal';
COMMENT ON VIEW @extschema@.slot_self_heal_history IS
    'creations of replication slots that are over, newest first';
COMMENT ON FUNCTION @extschema@.slot_self_heal_end_blocker(xid, interval) IS
    'ends a transaction that blocks the creation of a slot on a standby, if the settings allow it';
COMMENT ON FUNCTION @extschema@.slot_self_heal_nudge() IS
    'writes and flushes a running-xacts record';
COMMENT ON FUNCTION @extschema@.slot_self_heal_reset() IS
    'sets the counters of slot_self_heal_worker to zero and forgets finished creations';

REVOKE ALL ON FUNCTION @extschema@.slot_self_heal_get_status() FROM PUBLIC;
REVOKE ALL ON FUNCTION @extschema@.slot_self_heal_get_worker() FROM PUBLIC;
REVOKE ALL ON FUNCTION @extschema@.slot_self_heal_get_history() FROM PUBLIC;
REVOKE ALL ON FUNCTION @extschema@.slot_self_heal_end_blocker(xid, interval) FROM PUBLIC;
REVOKE ALL ON FUNCTION @extschema@.slot_self_heal_nudge() FROM PUBLIC;
REVOKE ALL ON FUNCTION @extschema@.slot_self_heal_reset() FROM PUBLIC;
REVOKE ALL ON @extschema@.slot_self_heal_status FROM PUBLIC;
REVOKE ALL ON @extschema@.slot_self_heal_worker FROM PUBLIC;
REVOKE ALL ON @extschema@.slot_self_heal_history FROM PUBLIC;

-- A view's functions run as the caller, so reading a view takes both.
GRANT EXECUTE ON FUNCTION @extschema@.slot_self_heal_get_status() TO pg_monitor;
GRANT EXECUTE ON FUNCTION @extschema@.slot_self_heal_get_worker() TO pg_monitor;
GRANT EXECUTE ON FUNCTION @extschema@.slot_self_heal_get_history() TO pg_monitor;
GRANT SELECT ON @extschema@.slot_self_heal_status TO pg_monitor;
GRANT SELECT ON @extschema@.slot_self_heal_history TO pg_monitor;
GRANT SELECT ON @extschema@.slot_self_heal_worker TO pg_monitor;
