"""The page where one looks around in runs: a local server that reads them and writes nothing in them.

server     what it answers, and how it is started        live       which runs there are and what they have become
guard      who may ask                                   uploads    what may be sent as a picture
connections  how long one may stay silent              apart      the process that looks at new pictures
asking     a new picture and a loaded model: the only part that needs torch, imported in that process
"""
