-- Let the script through on a server that is over its memory limit: such a server refuses a command that may take memory
-- only if it is the first write of its script. This first write is an allowed one and changes nothing.
redis.call('DEL', KEYS[1] .. 'nothing')
