"""What every command shares.

Takes click's strings, gives the library's values; prints tables and progress.

options      decorators, one name for one thing
parameters   types of arguments, and what a shell completes
group        commands under headings, errors in one line, Ctrl-C
tables       what is printed
progress     a bar or a log
prompt       what is typed in a chat
answers      as they grow
"""
