-- How far a standby's replay has come, and what holds it up.
--
-- Run by the worker on a standby, in the same transaction as slots.sql. One row.
-- A recovery conflict on a snapshot concerns the sessions of one database, or of
-- all (GetConflictingVirtualXIDs, procarray.c), and does not tell which. Those
-- with the oldest snapshot of their database may be among them, and are if no
-- other database has any. Who holds a lock is looked up only while the startup
-- process waits for one. Sessions are told by their pids and the beginnings of
-- their transactions.
SELECT pg_catalog.pg_last_wal_replay_lsn() AS replayed,
       pg_catalog.pg_last_wal_receive_lsn() AS received,
       CASE WHEN pg_catalog.pg_is_in_recovery()
            THEN (pg_catalog.pg_get_wal_replay_pause_state()
                  OPERATOR(pg_catalog.=) 'paused')::pg_catalog.text
            ELSE 'false'
       END AS paused,
       (EXISTS (SELECT FROM pg_catalog.pg_stat_activity AS r
                 WHERE r.backend_type OPERATOR(pg_catalog.=) 'walreceiver'))::pg_catalog.text
           AS receives,
       (pg_catalog.current_setting('restore_command') OPERATOR(pg_catalog.<>) '')::pg_catalog.text
           AS has_archive,
       (pg_catalog.date_part('epoch', pg_catalog.current_setting('recovery_min_apply_delay')::pg_catalog.interval)
           OPERATOR(pg_catalog.*) 1000)::pg_catalog.int8 AS apply_delay,
       pg_catalog.current_setting('max_standby_streaming_delay') AS streaming_delay,
       pg_catalog.current_setting('max_standby_archive_delay') AS archive_delay,
       s.wait_event AS startup_wait,
       CASE WHEN s.wait_event_type OPERATOR(pg_catalog.=) 'Lock'
            THEN (SELECT pg_catalog.json_agg(pg_catalog.json_build_object(
                             'pid', h.pid,
                             'xact_start',
                             pg_catalog.to_char(pg_catalog.timezone('UTC', a.xact_start),
                                                'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"'),
                             'backend_type', a.backend_type,
                             'usename', a.usename,
                             'application_name', a.application_name,
                             'query', pg_catalog."left"(a.query, 100)))
                    FROM pg_catalog.pg_locks AS w
                         JOIN pg_catalog.pg_locks AS h
                           ON h.locktype OPERATOR(pg_catalog.=) w.locktype
                          AND h.database IS NOT DISTINCT FROM w.database
                          AND h.relation IS NOT DISTINCT FROM w.relation
                          AND h.classid IS NOT DISTINCT FROM w.classid
                          AND h.objid IS NOT DISTINCT FROM w.objid
                          AND h.objsubid IS NOT DISTINCT FROM w.objsubid
                          AND h.granted
                         LEFT JOIN pg_catalog.pg_stat_activity AS a
                                ON a.pid OPERATOR(pg_catalog.=) h.pid
                   WHERE w.pid OPERATOR(pg_catalog.=) s.pid
                     AND NOT w.granted
                     AND h.pid OPERATOR(pg_catalog.<>) w.pid)
            WHEN s.wait_event OPERATOR(pg_catalog.=) 'RecoveryConflictSnapshot'
            THEN (SELECT pg_catalog.json_agg(pg_catalog.json_build_object(
                             'pid', h.pid,
                             'xact_start',
                             pg_catalog.to_char(pg_catalog.timezone('UTC', h.xact_start),
                                                'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"'),
                             'backend_type', h.backend_type,
                             'usename', h.usename,
                             'application_name', h.application_name,
                             'query', pg_catalog."left"(h.query, 100)))
                    FROM (SELECT a.*,
                                 pg_catalog.rank() OVER (
                                     PARTITION BY a.datid
                                     ORDER BY pg_catalog.age(a.backend_xmin) DESC) AS seniority
                            FROM pg_catalog.pg_stat_activity AS a
                           WHERE a.backend_xmin IS NOT NULL
                             AND a.datid IS NOT NULL
                             AND a.pid OPERATOR(pg_catalog.<>) pg_catalog.pg_backend_pid())
                         AS h
                   WHERE h.seniority OPERATOR(pg_catalog.=) 1)
       END AS waits_for,
       (s.wait_event IS DISTINCT FROM 'RecoveryConflictSnapshot'
        OR (SELECT pg_catalog.count(DISTINCT a.datid)
              FROM pg_catalog.pg_stat_activity AS a
             WHERE a.backend_xmin IS NOT NULL
               AND a.datid IS NOT NULL
               AND a.pid OPERATOR(pg_catalog.<>) pg_catalog.pg_backend_pid())
           OPERATOR(pg_catalog.<=) 1)::pg_catalog.text AS is_certain
  FROM (SELECT) AS one
       LEFT JOIN pg_catalog.pg_stat_activity AS s
              ON s.backend_type OPERATOR(pg_catalog.=) 'startup'
