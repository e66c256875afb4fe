-- What our session on another server is to be like, whatever ALTER ROLE, ALTER
-- DATABASE or its files set there.
--
-- Run over a connection to another server as one message, and so one
-- transaction: its own isolation is set first, since a serializable one cannot
-- begin on a standby.
--
-- Values are taken as bytes, whatever encoding they are in: otherwise the server
-- would refuse to send what it cannot convert. No object that a user made there
-- is ever found by name. What we no longer wait for should not go on for long.
-- And nothing ends a session that rests between two questions. Not every version
-- has each of these timeouts, and SET would fail for one that is not there.
SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
SET default_transaction_isolation = 'read committed';
SET client_encoding = 'SQL_ASCII';
SET search_path = pg_catalog, pg_temp;
SET client_min_messages = error;
SET statement_timeout = '10s';
SELECT pg_catalog.count(pg_catalog.set_config(s.name, '0', false))
  FROM pg_catalog.pg_settings AS s
 WHERE s.name IN ('idle_in_transaction_session_timeout', 'idle_session_timeout', 'lock_timeout',
                  'transaction_timeout')
