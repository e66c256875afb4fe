-- Who the upstream is, and what the connected role may do there.
--
-- Run over a connection to another server, in text form. The next xid is what
-- age() counts from in a session that has none of its own: it is told by its
-- distance from the first of all, 3 (FirstNormalTransactionId). A WAL receiver has
-- a pid in pg_stat_get_wal_receiver() once it is connected, and any role may see
-- that; a standby sends on what it has received or replayed, whichever is more
-- (GetStandbyFlushRecPtr, walsender.c). The functions are the extension's own
-- members: others of their names may be anybody's.
SELECT pg_catalog.pg_is_in_recovery()::pg_catalog.text AS in_recovery,
       pg_catalog.split_part(pg_catalog.current_setting('server_version'), ' ', 1) AS version,
       c.system_identifier::pg_catalog.text AS system_identifier,
       CURRENT_USER::pg_catalog.text AS role,
       pg_catalog.current_database()::pg_catalog.text AS database,
       n.nspname::pg_catalog.text AS extension_schema,
       COALESCE(pg_catalog.has_schema_privilege(n.oid, 'USAGE'), false)::pg_catalog.text
           AS may_use_schema,
       COALESCE(pg_catalog.has_function_privilege(e.nudge, 'EXECUTE'), false)::pg_catalog.text
           AS may_use_extension,
       pg_catalog.has_function_privilege(e.end_blocker, 'EXECUTE')::pg_catalog.text
           AS may_end_blockers,
       pg_catalog.has_function_privilege(
           pg_catalog.to_regprocedure('pg_catalog.pg_log_standby_snapshot()')::pg_catalog.oid,
           'EXECUTE')::pg_catalog.text AS may_use_core,
       pg_catalog.pg_has_role(CURRENT_USER, 'pg_read_all_stats', 'USAGE')::pg_catalog.text AS sees_all,
       CASE WHEN NOT pg_catalog.pg_is_in_recovery()
            THEN pg_catalog.pg_current_wal_insert_lsn()
       END::pg_catalog.text AS position,
       CASE WHEN pg_catalog.pg_is_in_recovery()
            THEN GREATEST(pg_catalog.pg_last_wal_receive_lsn(), pg_catalog.pg_last_wal_replay_lsn())
       END::pg_catalog.text AS received,
       (SELECT r.pid IS NOT NULL
          FROM pg_catalog.pg_stat_get_wal_receiver() AS r)::pg_catalog.text AS receives,
       pg_catalog.age('3'::pg_catalog.xid)::pg_catalog.text AS age_of_first_xid,
       COALESCE(pg_catalog.current_setting('slot_self_heal.enabled', true), 'on') AS enabled,
       pg_catalog.current_setting('slot_self_heal.blocker_action', true) AS blocker_action,
       pg_catalog.current_setting('slot_self_heal.blocker_scope', true) AS blocker_scope,
       pg_catalog.current_setting('slot_self_heal.protected_roles', true) AS protected_roles
  FROM pg_catalog.pg_control_system() AS c
       LEFT JOIN (SELECT x.extnamespace,
                         pg_catalog.min(p.oid::pg_catalog.int8) FILTER (
                             WHERE p.proname OPERATOR(pg_catalog.=) 'slot_self_heal_nudge')
                             ::pg_catalog.oid AS nudge,
                         pg_catalog.min(p.oid::pg_catalog.int8) FILTER (
                             WHERE p.proname OPERATOR(pg_catalog.=) 'slot_self_heal_end_blocker')
                             ::pg_catalog.oid AS end_blocker
                    FROM pg_catalog.pg_extension AS x
                         LEFT JOIN pg_catalog.pg_depend AS d
                                ON d.refclassid OPERATOR(pg_catalog.=)
                                       'pg_catalog.pg_extension'::pg_catalog.regclass
                               AND d.refobjid OPERATOR(pg_catalog.=) x.oid
                               AND d.classid OPERATOR(pg_catalog.=)
                                       'pg_catalog.pg_proc'::pg_catalog.regclass
                               AND d.deptype OPERATOR(pg_catalog.=) 'e'
                         LEFT JOIN pg_catalog.pg_proc AS p
                                ON p.oid OPERATOR(pg_catalog.=) d.objid
                   WHERE x.extname OPERATOR(pg_catalog.=) 'slot_self_heal'
                   GROUP BY x.extnamespace) AS e
              ON true
       LEFT JOIN pg_catalog.pg_namespace AS n
              ON n.oid OPERATOR(pg_catalog.=) e.extnamespace
