-- Every logical slot, and who builds it.
--
-- Run by the worker, which connects as the bootstrap superuser with search_path
-- pinned to pg_catalog, and by slot_self_heal_get_status(), whose search_path is
-- pinned in the same way. Points in time are microseconds since 2000-01-01 UTC.
-- invalidation_reason and synced exist from PostgreSQL 17 on, slotsync_skip_reason
-- from 19 on, so they are read from the row as JSON. What a worker works for has the
-- client: the session that runs REPACK (CONCURRENTLY).
SELECT s.slot_name,
       s.database,
       s.plugin,
       s.restart_lsn,
       s.catalog_xmin,
       (s.confirmed_flush_lsn IS NOT NULL)::pg_catalog.text AS usable,
       (s.wal_status IS NOT DISTINCT FROM 'lost')::pg_catalog.text AS invalidated,
       pg_catalog.to_jsonb(s) OPERATOR(pg_catalog.->>) 'invalidation_reason'
           AS invalidation_reason,
       CASE WHEN s.wal_status OPERATOR(pg_catalog.<>) 'lost' THEN
           (w.now OPERATOR(pg_catalog.-) s.restart_lsn)::pg_catalog.int8
       END AS retained_wal,
       s.wal_status,
       s.safe_wal_size,
       COALESCE(pg_catalog.to_jsonb(s) OPERATOR(pg_catalog.->>) 'synced', 'false') AS synced,
       CASE WHEN s.temporary
            THEN COALESCE(pg_catalog.to_jsonb(s) OPERATOR(pg_catalog.->>) 'synced', 'false')
            ELSE 'false'
       END AS not_sync_ready,
       pg_catalog.to_jsonb(s) OPERATOR(pg_catalog.->>) 'slotsync_skip_reason'
           AS sync_skipped,
       s.active_pid AS creator_pid,
       a.leader_pid AS creator_leader_pid,
       a.backend_type AS creator_type,
       COALESCE(pg_catalog.pg_get_userbyid(l.usesysid), a.usename) AS creator_usename,
       COALESCE(l.application_name, a.application_name) AS creator_application,
       pg_catalog.host(COALESCE(l.client_addr, a.client_addr)) AS creator_client_addr,
       a.client_port AS creator_client_port,
       (pg_catalog.date_part('epoch', a.backend_start) OPERATOR(pg_catalog.*) 1000000)::pg_catalog.int8
           OPERATOR(pg_catalog.-) 946684800000000 AS creator_start,
       (pg_catalog.date_part('epoch', a.query_start) OPERATOR(pg_catalog.*) 1000000)::pg_catalog.int8
           OPERATOR(pg_catalog.-) 946684800000000 AS creator_query_start,
       a.state AS creator_state,
       (a.backend_xid IS NOT NULL)::pg_catalog.text AS creator_has_xid,
       a.wait_event_type AS creator_wait_event_type,
       a.wait_event AS creator_wait_event
  FROM pg_catalog.pg_replication_slots AS s
       LEFT JOIN pg_catalog.pg_stat_activity AS a
              ON a.pid OPERATOR(pg_catalog.=) s.active_pid
       LEFT JOIN pg_catalog.pg_stat_get_activity(COALESCE(a.leader_pid, 0)) AS l
              ON TRUE
       CROSS JOIN (SELECT CASE WHEN pg_catalog.pg_is_in_recovery()
                               THEN pg_catalog.pg_last_wal_replay_lsn()
                               ELSE pg_catalog.pg_current_wal_insert_lsn()
                          END) AS w (now)
 WHERE s.slot_type OPERATOR(pg_catalog.=) 'logical'
 ORDER BY s.slot_name
