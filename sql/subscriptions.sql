-- What the workers of logical replication work for: a subscription, and the table
-- that is copied for it. The table's name is known in its own database only.
--
-- Run in the same transaction as transactions.sql, and only where such a worker
-- is in the way.
SELECT w.pid,
       COALESCE(s.subname::pg_catalog.text,
                pg_catalog.concat('with OID ', w.subid)) AS name,
       CASE WHEN w.relid IS NOT NULL
            THEN COALESCE(
                     (SELECT pg_catalog.format('%I.%I', n.nspname, c.relname)
                        FROM pg_catalog.pg_class AS c
                             JOIN pg_catalog.pg_namespace AS n
                               ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
                             JOIN pg_catalog.pg_database AS d
                               ON d.oid OPERATOR(pg_catalog.=) s.subdbid
                              AND d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()
                       WHERE c.oid OPERATOR(pg_catalog.=) w.relid),
                     pg_catalog.concat('with OID ', w.relid))
       END AS relation
  FROM pg_catalog.pg_stat_get_subscription(NULL) AS w
       LEFT JOIN pg_catalog.pg_subscription AS s
              ON s.oid OPERATOR(pg_catalog.=) w.subid
 WHERE w.pid IS NOT NULL
