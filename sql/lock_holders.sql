-- Who holds the locks that some processes wait for, and who those wait for in
-- turn: one row for each process on the way.
--
-- Run in the same transaction as transactions.sql, and only where one of these
-- waits for a lock. $1: their pids. Each is followed once, so that a circle
-- ends, and no more than fifty are: pg_blocking_pids() locks the lock manager's
-- tables (GetBlockerStatusData, lock.c). A prepared transaction, which has no
-- process, is 0 to it; it is found by the locks on the same object, and known by
-- the lock that it keeps on its own xid.
WITH RECURSIVE chain (pid, waits_for) AS (
    SELECT w.pid, pg_catalog.pg_blocking_pids(w.pid)
      FROM pg_catalog.unnest($1::pg_catalog.int4[]) AS w (pid)
     UNION
    SELECT h.pid,
           CASE WHEN a.wait_event_type OPERATOR(pg_catalog.=) 'Lock'
                THEN pg_catalog.pg_blocking_pids(h.pid)
                ELSE '{}'
           END
      FROM chain AS c
           CROSS JOIN LATERAL pg_catalog.unnest(c.waits_for) AS h (pid)
           JOIN pg_catalog.pg_stat_activity AS a
             ON a.pid OPERATOR(pg_catalog.=) h.pid
)
SELECT l.pid,
       pg_catalog.array_to_string(l.waits_for, ',') AS waits_for,
       CASE WHEN 0 OPERATOR(pg_catalog.=) ANY (l.waits_for)
            THEN (SELECT pg_catalog.string_agg(x.transactionid::pg_catalog.text, ',')
                    FROM pg_catalog.pg_locks AS w
                         JOIN pg_catalog.pg_locks AS h
                           ON h.locktype OPERATOR(pg_catalog.=) w.locktype
                          AND h.database IS NOT DISTINCT FROM w.database
                          AND h.relation IS NOT DISTINCT FROM w.relation
                          AND h.page IS NOT DISTINCT FROM w.page
                          AND h.tuple IS NOT DISTINCT FROM w.tuple
                          AND h.virtualxid IS NOT DISTINCT FROM w.virtualxid
                          AND h.transactionid IS NOT DISTINCT FROM w.transactionid
                          AND h.classid IS NOT DISTINCT FROM w.classid
                          AND h.objid IS NOT DISTINCT FROM w.objid
                          AND h.objsubid IS NOT DISTINCT FROM w.objsubid
                         JOIN pg_catalog.pg_locks AS x
                           ON x.virtualtransaction OPERATOR(pg_catalog.=) h.virtualtransaction
                          AND x.locktype OPERATOR(pg_catalog.=) 'transactionid'
                   WHERE w.pid OPERATOR(pg_catalog.=) l.pid
                     AND NOT w.granted
                     AND h.granted
                     AND h.pid IS NULL
                     AND x.granted
                     AND x.pid IS NULL)
       END AS waits_for_prepared,
       a.backend_xid AS xid,
       a.datname AS database,
       a.usename,
       a.application_name,
       pg_catalog.host(a.client_addr) AS client_addr,
       a.backend_type,
       a.state,
       (pg_catalog.date_part('epoch', a.state_change) OPERATOR(pg_catalog.*) 1000000)::pg_catalog.int8
           OPERATOR(pg_catalog.-) 946684800000000 AS state_since,
       (pg_catalog.date_part('epoch', a.xact_start) OPERATOR(pg_catalog.*) 1000000)::pg_catalog.int8
           OPERATOR(pg_catalog.-) 946684800000000 AS started,
       pg_catalog.to_char(pg_catalog.timezone('UTC', a.xact_start),
                          'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"') AS xact_start,
       pg_catalog.to_char(pg_catalog.timezone('UTC', a.backend_start),
                          'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"') AS backend_start,
       -- One that is longer than that need not be read for what it begins with.
       CASE WHEN pg_catalog.octet_length(a.query) OPERATOR(pg_catalog.<) 65536
            THEN a.query
       END AS query
  FROM (SELECT c.pid, c.waits_for
          FROM chain AS c
         LIMIT 50) AS l
       JOIN pg_catalog.pg_stat_activity AS a
         ON a.pid OPERATOR(pg_catalog.=) l.pid
