"""The page where one looks around in runs: a local server that reads them and writes nothing in them.

server     what it answers, and how it is started        live       which runs there are and what they have become
guard      who may ask                                   uploads    what may be sent as a picture
asking     a new picture and a loaded model: the only part that needs torch, imported when a person asks
"""
