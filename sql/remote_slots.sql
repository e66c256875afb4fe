-- The upstream's logical slots, of which a standby may keep copies.
--
-- Run over a connection to another server, whose answer is bounded.
SELECT s.slot_name,
       s.restart_lsn,
       s.active::pg_catalog.text AS active
  FROM pg_catalog.pg_replication_slots AS s
 WHERE s.slot_type OPERATOR(pg_catalog.=) 'logical'
 ORDER BY s.slot_name
 LIMIT 10000
