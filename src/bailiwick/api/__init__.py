"""The HTTP API: parse, call, render; decides nothing.

governance (what it calls) and the routes of installation, runs, holds and record; declare (a route says its role and its types, or it is not there);
doorman (who is it: the socket they came in on, or a token, before anything else is looked at); operators; problem (the only place an error becomes
an answer); stream (events as they are committed); server (uvicorn on sockets that are listening already).

Always: default deny. No route without a role, no answer before authentication, and a run's uid is nobody's operator.
"""
