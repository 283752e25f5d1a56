-- A worker lost some tokens and lives: take back the deaths charged for it, add failed attempts.
-- ARGV: group, type, worker, tokens, attempts to add.
for _, held in ipairs(cmsgpack.unpack(ARGV[4])) do
  local token = bare(held)
  local owner = holder(token)
  if owner and owner ~= ARGV[3] then
    local note = read_note(token)
    if note[4] > 0 then
      note[1], note[3] = note[1] + tonumber(ARGV[5]), math.max(-1, note[3] - 1)
      write_note(token, note)
    end
  end
end
return 1
