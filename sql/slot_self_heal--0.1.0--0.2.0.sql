/* slot_self_heal--0.1.0--0.2.0.sql */

-- complain if script is sourced in psql, rather than via ALTER EXTENSION
\echo Use "ALTER EXTENSION slot_self_heal UPDATE TO '0.2.0'" to load this file. \quit

-- The views get columns, so the functions under them return others than before,
-- which takes new functions. Those have the old names: the manual has operators
-- grant them. The views themselves stay, and with them whatever was built on
-- them and whoever may read them.

ALTER FUNCTION @extschema@.slot_self_heal_get_status()
    RENAME TO slot_self_heal_get_status_0_1;

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
    OUT hint text,
    OUT tries int4)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'slot_self_heal_get_status_0_2_wrapper'
LANGUAGE C STRICT VOLATILE PARALLEL RESTRICTED
SET search_path = pg_catalog, pg_temp;

CREATE OR REPLACE VIEW @extschema@.slot_self_heal_status AS
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
       s.hint,
       s.tries
  FROM @extschema@.slot_self_heal_get_status() AS s;

ALTER FUNCTION @extschema@.slot_self_heal_get_history()
    RENAME TO slot_self_heal_get_history_0_1;

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
    OUT blockers jsonb,
    OUT reason text,
    OUT tries int4)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'slot_self_heal_get_history_0_2_wrapper'
LANGUAGE C STRICT VOLATILE PARALLEL RESTRICTED
SET search_path = pg_catalog, pg_temp;

CREATE OR REPLACE VIEW @extschema@.slot_self_heal_history AS
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
       h.blockers,
       h.reason,
       h.tries
  FROM @extschema@.slot_self_heal_get_history() AS h;

-- As 0.1.0 has it.
REVOKE ALL ON FUNCTION @extschema@.slot_self_heal_get_status() FROM PUBLIC;
REVOKE ALL ON FUNCTION @extschema@.slot_self_heal_get_history() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION @extschema@.slot_self_heal_get_status() TO pg_monitor;
GRANT EXECUTE ON FUNCTION @extschema@.slot_self_heal_get_history() TO pg_monitor;

-- What an operator granted on an old function, or revoked, holds for the new one.
--
-- A script's own GRANTs count as the extension's (pg_init_privs), which pg_dump
-- leaves out, and from PostgreSQL 17 on a role that is named there can't be
-- dropped. An operator's stay an operator's: pg_init_privs is left as it was.
DO $script$
DECLARE
    old_function pg_catalog.regprocedure;
    new_function pg_catalog.regprocedure;
    initial pg_catalog.aclitem[];
    granted record;
BEGIN
    FOR old_function, new_function IN
        VALUES ('@extschema@.slot_self_heal_get_status_0_1()'::pg_catalog.regprocedure,
                '@extschema@.slot_self_heal_get_status()'::pg_catalog.regprocedure),
               ('@extschema@.slot_self_heal_get_history_0_1()',
                '@extschema@.slot_self_heal_get_history()')
    LOOP
        SELECT i.initprivs INTO STRICT initial
          FROM pg_catalog.pg_init_privs AS i
         WHERE i.classoid OPERATOR(pg_catalog.=) 'pg_catalog.pg_proc'::pg_catalog.regclass
           AND i.objoid OPERATOR(pg_catalog.=) new_function
           AND i.objsubid OPERATOR(pg_catalog.=) 0;

        FOR granted IN
            WITH present AS (
                SELECT a.grantee, a.is_grantable
                  FROM pg_catalog.pg_proc AS p,
                       pg_catalog.aclexplode(p.proacl) AS a
                 WHERE p.oid OPERATOR(pg_catalog.=) old_function
            ), installed AS (
                SELECT a.grantee, a.is_grantable
                  FROM pg_catalog.pg_init_privs AS i,
                       pg_catalog.aclexplode(i.initprivs) AS a
                 WHERE i.classoid OPERATOR(pg_catalog.=) 'pg_catalog.pg_proc'::pg_catalog.regclass
                   AND i.objoid OPERATOR(pg_catalog.=) old_function
                   AND i.objsubid OPERATOR(pg_catalog.=) 0
            ), changed AS (
                (TABLE installed EXCEPT TABLE present)
                UNION ALL
                (TABLE present EXCEPT TABLE installed)
            )
            SELECT CASE WHEN c.grantee OPERATOR(pg_catalog.=) 0 THEN 'PUBLIC'
                   ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(c.grantee))
                   END AS role,
                   p.is_grantable
              FROM (SELECT DISTINCT changed.grantee FROM changed) AS c
                   LEFT JOIN present AS p
                          ON p.grantee OPERATOR(pg_catalog.=) c.grantee
        LOOP
            IF granted.is_grantable IS NULL THEN
                EXECUTE pg_catalog.format('REVOKE EXECUTE ON FUNCTION %s FROM %s',
                                          new_function, granted.role);
            ELSE
                EXECUTE pg_catalog.format('GRANT EXECUTE ON FUNCTION %s TO %s%s',
                                          new_function, granted.role,
                                          CASE WHEN granted.is_grantable
                                               THEN ' WITH GRANT OPTION'
                                               ELSE '' END);
            END IF;
        END LOOP;

        UPDATE pg_catalog.pg_init_privs
           SET initprivs = initial
         WHERE classoid OPERATOR(pg_catalog.=) 'pg_catalog.pg_proc'::pg_catalog.regclass
           AND objoid OPERATOR(pg_catalog.=) new_function
           AND objsubid OPERATOR(pg_catalog.=) 0
           AND initprivs OPERATOR(pg_catalog.<>) initial;
        -- SHARED_DEPENDENCY_INITACL
        DELETE FROM pg_catalog.pg_shdepend AS d
         USING pg_catalog.pg_database AS b
         WHERE b.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()
           AND d.dbid OPERATOR(pg_catalog.=) b.oid
           AND d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_proc'::pg_catalog.regclass
           AND d.objid OPERATOR(pg_catalog.=) new_function
           AND d.deptype OPERATOR(pg_catalog.=) 'i'
           AND NOT EXISTS (SELECT FROM pg_catalog.aclexplode(initial) AS a
                            WHERE a.grantee OPERATOR(pg_catalog.=) d.refobjid);

        -- Nothing of ours needs it any more. What a user built on it may stay,
        -- and it with that, as the user's own.
        BEGIN
            EXECUTE pg_catalog.format('DROP FUNCTION %s', old_function);
        EXCEPTION WHEN dependent_objects_still_exist THEN
            EXECUTE pg_catalog.format('ALTER EXTENSION slot_self_heal DROP FUNCTION %s',
                                      old_function);
        END;
    END LOOP;
END
$script$;
