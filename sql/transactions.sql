-- Every transaction that has an xid and has not ended: those that a running-xacts
-- record would name (GetRunningTransactionData, procarray.c), subtransactions
-- left out.
--
-- Run by the worker on a primary, in the same transaction as slots.sql, so that
-- both read the same copy of pg_stat_activity. Points in time are microseconds
-- since 2000-01-01 UTC; xact_start is for people. copied: bytes that a COPY has
-- processed (pg_stat_progress_copy). accepts_connections: whether a prepared
-- transaction's database lets anybody in who could end it; an invalid one is what
-- an interrupted DROP DATABASE leaves (pg_database.h).
SELECT t.xid,
       t.pid,
       t.gid,
       t.database,
       t.usename,
       t.application_name,
       pg_catalog.host(t.client_addr) AS client_addr,
       t.backend_type,
       t.client_port,
       t.state,
       t.wait_event_type,
       t.wait_event,
       t.copied,
       (pg_catalog.date_part('epoch', t.state_change) OPERATOR(pg_catalog.*) 1000000)::pg_catalog.int8
           OPERATOR(pg_catalog.-) 946684800000000 AS state_since,
       (pg_catalog.date_part('epoch', t.xact_start) OPERATOR(pg_catalog.*) 1000000)::pg_catalog.int8
           OPERATOR(pg_catalog.-) 946684800000000 AS started,
       pg_catalog.to_char(pg_catalog.timezone('UTC', t.xact_start),
                          'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"') AS xact_start,
       t.query,
       t.accepts_connections
  FROM (SELECT a.backend_xid, a.pid, NULL, a.datname, a.usename, a.application_name,
               a.client_addr, a.client_port, a.backend_type, a.state, a.wait_event_type,
               a.wait_event, c.param1, a.state_change, a.xact_start, a.query, NULL
          FROM pg_catalog.pg_stat_activity AS a
               LEFT JOIN pg_catalog.pg_stat_get_progress_info('COPY') AS c
                      ON c.pid OPERATOR(pg_catalog.=) a.pid
         WHERE a.backend_xid IS NOT NULL
         UNION ALL
        SELECT p.transaction, NULL, p.gid, p.database, p.owner, NULL,
               NULL, NULL, NULL, 'prepared', NULL,
               NULL, NULL, p.prepared, p.prepared, NULL,
               CASE WHEN d.datconnlimit OPERATOR(pg_catalog.=) -2 THEN 'invalid'
                    WHEN NOT d.datallowconn THEN 'no'
                    ELSE 'yes'
               END
          FROM pg_catalog.pg_prepared_xacts AS p
               LEFT JOIN pg_catalog.pg_database AS d
                      ON d.datname OPERATOR(pg_catalog.=) p.database)
       AS t (xid, pid, gid, database, usename, application_name,
             client_addr, client_port, backend_type, state, wait_event_type,
             wait_event, copied, state_change, xact_start, query, accepts_connections)
