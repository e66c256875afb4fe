-- What tells why replay is paused.
--
-- Run by the worker on a standby while replay is paused, in the same transaction
-- as replay.sql. One row for each setting that must be as high as the primary's,
-- and for each that is a recovery target. In the configuration files the last
-- line of a name counts; all of these come into force with a restart only.
SELECT s.name,
       s.setting AS value,
       f.setting AS in_files,
       (s.source OPERATOR(pg_catalog.=) 'command line')::pg_catalog.text AS on_command_line
  FROM pg_catalog.pg_settings AS s
       LEFT JOIN (SELECT DISTINCT ON (l.name) l.name, l.setting
                    FROM pg_catalog.pg_file_settings AS l
                   ORDER BY l.name, l.seqno DESC) AS f
              ON f.name OPERATOR(pg_catalog.=) s.name
 WHERE s.name OPERATOR(pg_catalog.=) ANY (ARRAY[
           'max_connections', 'max_worker_processes', 'max_wal_senders',
           'max_prepared_transactions', 'max_locks_per_transaction',
           'recovery_target', 'recovery_target_lsn', 'recovery_target_name',
           'recovery_target_time', 'recovery_target_xid'])
