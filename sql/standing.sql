-- What decides whether a session may be ended: who it belongs to, and for how many
-- milliseconds its client has let it idle.
--
-- Run in the same transaction as transactions.sql, and by a standby on its primary.
-- The parameters are transaction ids, as text, and the names in
-- slot_self_heal.protected_roles. The role is the one that the
-- session was opened as, as for pg_terminate_backend() (pg_signal_backend,
-- signalfuncs.c).
SELECT a.backend_xid AS xid,
       a.backend_type,
       COALESCE(r.rolsuper, true)::pg_catalog.text AS is_superuser,
       (SELECT p.rolname
          FROM pg_catalog.pg_roles AS p
         WHERE p.rolname OPERATOR(pg_catalog.=) ANY ($2)
           AND pg_catalog.pg_has_role(a.usesysid, p.oid, 'MEMBER')
         ORDER BY p.rolname
         LIMIT 1) AS protected_as,
       (SELECT pg_catalog.string_agg(pg_catalog.quote_ident(n.name), ', ')
          FROM pg_catalog.unnest($2) AS n (name)
         WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_roles AS p
                            WHERE p.rolname OPERATOR(pg_catalog.=) n.name)) AS unknown_roles,
       CASE WHEN a.state OPERATOR(pg_catalog.~~) 'idle in transaction%'
            THEN GREATEST(pg_catalog.date_part('epoch', pg_catalog.clock_timestamp()
                                                        OPERATOR(pg_catalog.-) a.state_change)
                          OPERATOR(pg_catalog.*) 1000, 0)::pg_catalog.int8
       END AS idle_for
  FROM pg_catalog.pg_stat_activity AS a
       LEFT JOIN pg_catalog.pg_roles AS r
              ON r.oid OPERATOR(pg_catalog.=) a.usesysid
 WHERE a.backend_xid::pg_catalog.text OPERATOR(pg_catalog.=) ANY ($1)
