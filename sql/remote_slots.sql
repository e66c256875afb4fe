-- The upstream's logical slots, of which a standby may keep copies.
--
-- Run over a connection to another server, whose answer is bounded. A walsender
-- waits for standbys before it sends a failover slot's consumer what those in
-- synchronized_standby_slots have not received (StandbySlotsHaveCaughtup, slot.c;
-- 17 and later). Only pg_read_all_stats sees that of another role's; everybody sees
-- whether a slot that is named there is gone or without a standby, which keeps back
-- all that is yet to be written. failover exists from PostgreSQL 17 on.
SELECT s.slot_name,
       s.restart_lsn,
       s.catalog_xmin,
       s.confirmed_flush_lsn,
       s.active::pg_catalog.text AS active,
       f.failover::pg_catalog.text AS failover,
       CASE WHEN s.active_pid IS NULL
            THEN false
            WHEN f.failover AND n.some_are_away
            THEN true
            ELSE COALESCE((SELECT a.wait_event OPERATOR(pg_catalog.=) 'WaitForStandbyConfirmation'
                             FROM pg_catalog.pg_stat_get_activity(s.active_pid) AS a), false)
       END::pg_catalog.text AS waits_for_standbys
  FROM pg_catalog.pg_replication_slots AS s
       CROSS JOIN LATERAL (SELECT COALESCE(pg_catalog.to_jsonb(s) OPERATOR(pg_catalog.->>) 'failover',
                                           'false')::pg_catalog.bool) AS f (failover)
       CROSS JOIN (SELECT COALESCE(pg_catalog.bool_or(p.active IS NOT TRUE), false)
                     FROM pg_catalog.string_to_table(
                              pg_catalog.current_setting('synchronized_standby_slots', true),
                              ',') AS named (name)
                          LEFT JOIN pg_catalog.pg_replication_slots AS p
                                 ON p.slot_name OPERATOR(pg_catalog.=)
                                        pg_catalog.btrim(named.name, ' "')::pg_catalog.name
                                AND p.slot_type OPERATOR(pg_catalog.=) 'physical'
                    WHERE pg_catalog.btrim(named.name) OPERATOR(pg_catalog.<>) '') AS n (some_are_away)
 WHERE s.slot_type OPERATOR(pg_catalog.=) 'logical'
 ORDER BY s.slot_name
 LIMIT 10000
