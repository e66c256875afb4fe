-- The upstream's logical slots, of which a standby may keep copies.
--
-- Run over a connection to another server, whose answer is bounded. A walsender
-- waits for standbys before it sends a failover slot's consumer what those in
-- synchronized_standby_slots have not received (StandbySlotsHaveCaughtup, slot.c;
-- 17 and later). Only pg_read_all_stats sees that of another role's.
SELECT s.slot_name,
       s.restart_lsn,
       s.confirmed_flush_lsn,
       s.active::pg_catalog.text AS active,
       CASE WHEN s.active_pid IS NULL
            THEN false
            ELSE COALESCE((SELECT a.wait_event OPERATOR(pg_catalog.=) 'WaitForStandbyConfirmation'
                             FROM pg_catalog.pg_stat_get_activity(s.active_pid) AS a), false)
       END::pg_catalog.text AS waits_for_standbys
  FROM pg_catalog.pg_replication_slots AS s
 WHERE s.slot_type OPERATOR(pg_catalog.=) 'logical'
 ORDER BY s.slot_name
 LIMIT 10000
